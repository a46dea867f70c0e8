"""Launches the lean decoder's kernels on a GPU. Owns nothing; every tensor is passed in; never waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kea.attention.base import LayerCache, LayerSpec
from kea.models.lean.spec import DecoderSpec
from kea.models.lean.triton_kernels import (
    HEAD_NORM,
    NO_NORM,
    ROW_NORM,
    begin_rows,
    enter_block,
    gate_rows,
    place_heads,
)
from kea.models.lean.triton_weights import DeviceLayer, DeviceNorm, DevicePhases

GATE_BLOCK = 1024
WIDE_ROW = 4096  # values of a row, from which on more warps share it


@dataclass(frozen=True, slots=True)
class Heads:
    """How a layer's queries, keys and values become heads. `columns`: the first and the number of its frequencies in a
    step's phases; none where it is not rotated.
    """

    layer: DeviceLayer
    shape: LayerSpec
    spec: DecoderSpec
    columns: tuple[int, int]


def begin(
    token_ids: torch.Tensor, positions: torch.Tensor, embedding: torch.Tensor, phases: DevicePhases, scale: float
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Return the hidden rows [T, K] of the tokens, and cos and sin [T, F] fp32 of their positions."""
    num_rows, width, count = len(token_ids), embedding.shape[1], len(phases.turns)
    hidden = embedding.new_empty(num_rows, width)
    cosines, sines = (phases.factors.new_empty(num_rows, count) for _ in range(2))
    begin_rows[num_rows,](
        token_ids, positions, embedding, phases.turns, phases.factors, hidden, cosines, sines,
        width, embedding.stride(0), count, scale,
        BLOCK=_power(width), BLOCK_F=_power(count), num_warps=_num_warps(width),
    )  # fmt: skip
    return hidden, (cosines, sines)


def enter(
    hidden: torch.Tensor,
    result: torch.Tensor | None,
    norms: tuple[DeviceNorm | None, DeviceNorm | None],
    spec: DecoderSpec,
    index: torch.Tensor | None = None,
) -> torch.Tensor:
    """Add a block's result [T, K] to the hidden rows; return the rows that the next block takes. `norms`: behind the
    last block, before the next one. With `index`, of these rows alone, and the hidden rows stay as they were.
    """
    after, before = norms
    width = hidden.shape[1]
    num_rows = len(hidden) if index is None else len(index)
    rows = hidden if before is None else hidden.new_empty(num_rows, width)
    nothing = hidden
    enter_block[num_rows,](
        hidden, nothing if result is None else result, rows, nothing if index is None else index,
        *_parts(after, nothing), *_parts(before, nothing),
        width, spec.residual_scale, spec.norm_eps,
        HAS_RESULT=result is not None, HAS_INDEX=index is not None, HAS_AFTER=after is not None,
        HAS_BEFORE=before is not None, HAS_BIAS=any(norm is not None and norm.bias is not None for norm in norms),
        CENTRED=spec.family.centred, BLOCK=_power(width), num_warps=_num_warps(width),
    )  # fmt: skip
    return rows


def heads(
    qkv: torch.Tensor,
    own: Heads,
    phases: tuple[torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    cache: LayerCache,
) -> torch.Tensor:
    """Return the queries [T, H, Dk] of `qkv`, and write its keys and values to their slots of the cache."""
    layer, shape, spec, columns = own.layer, own.shape, own.spec, own.columns
    num_rows, num_heads, num_kv_heads = len(qkv), shape.num_heads, shape.num_kv_heads
    query = qkv.new_empty(num_rows, num_heads, shape.key_dim)
    cosines, sines = (part[:, columns[0] :] for part in phases)
    norms = [_head_norm(norm, shape.key_dim) for norm in (layer.query_norm, layer.key_norm)]
    weights = [phases[0] if norm is None else norm.weight for norm in (layer.query_norm, layer.key_norm)]
    place_heads[num_rows, num_heads + 2 * num_kv_heads](
        qkv, query, cache.keys, cache.values, slots, *weights, cosines, sines,
        qkv.stride(0), *cache.keys.stride()[:2], *cache.values.stride()[:2], phases[0].stride(0),
        num_heads, num_kv_heads, spec.norm_eps,
        KEY_DIM=shape.key_dim, VALUE_DIM=shape.value_dim, BLOCK_K=_power(shape.key_dim),
        BLOCK_V=_power(shape.value_dim),
        BLOCK_W=_power(num_heads * shape.key_dim) if ROW_NORM in norms else 1,
        QUERY_NORM=norms[0], KEY_NORM=norms[1], TURN_DIMS=2 * columns[1], TURN_PAIRS=spec.family.pairs,
        num_warps=4 if ROW_NORM in norms else 1,
    )  # fmt: skip
    return query


def gate(both: torch.Tensor, spec: DecoderSpec) -> torch.Tensor:
    """Return act(gate) * up [T, I] of `both` [T, 2 I]."""
    size = spec.intermediate_size
    gated = both.new_empty(len(both), size)
    gate_rows[len(both), -(-size // GATE_BLOCK)](
        both, gated, size, TANH=spec.activation == "gelu_tanh", BLOCK=min(GATE_BLOCK, _power(size))
    )
    return gated


def _head_norm(norm: DeviceNorm | None, dim: int) -> int:
    """Return which norm of heads it is; the kernels know of none with a bias."""
    if norm is None:
        return NO_NORM
    assert norm.bias is None, "a norm of heads has a bias"
    return HEAD_NORM if len(norm.weight) == dim else ROW_NORM


def _parts(norm: DeviceNorm | None, nothing: torch.Tensor) -> tuple[Any, Any]:
    """Return a norm's weight and bias, or what a kernel that does not read them takes in their place."""
    if norm is None:
        return nothing, nothing
    return norm.weight, nothing if norm.bias is None else norm.bias


def _power(width: int) -> int:
    return 1 << (width - 1).bit_length()


def _num_warps(width: int) -> int:
    return 8 if width >= WIDE_ROW else 4

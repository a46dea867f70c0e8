"""Launches the kernels of the backend `triton` for one layer. Owns nothing; every tensor is passed in; never waits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kea.attention.base import LayerCache, LayerSpec
from kea.attention.triton_kernels import LOG2E, attend_items, is_interpreted, merge_parts, write_cache
from kea.attention.triton_tiles import Machine, Tile, block_dim, narrow_tile, wide_tile

MERGE_BLOCK = 16
WRITE_ELEMENTS = 2048
LOG2_E = float(LOG2E.value)


@dataclass(frozen=True, slots=True)
class Launch:
    """The work of one kind of layer on the device; see `Work`. The launches' sizes are those of the tensors."""

    narrow: torch.Tensor  # [N, 5] int32
    wide: torch.Tensor  # [N, 5] int32
    entries: torch.Tensor  # [N, 5] int32
    merges: torch.Tensor  # [R, 3] int32
    pages: torch.Tensor  # [P] int32
    num_parts: int
    page_tokens: int


@dataclass(frozen=True, slots=True)
class Parts:
    """Room for partial results: outputs [P, H, Dv] and log-sum-exps [P, H], fp32."""

    outputs: torch.Tensor
    lse: torch.Tensor


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One layer's queries [T, H, Dk] and outputs [T, H, Dv], its cache, its learned sink logits [H] if it has them, and
    the turns [A, D] of queries before pinned runs, if there are any (see `make_turns`).
    """

    spec: LayerSpec
    query: torch.Tensor
    output: torch.Tensor
    cache: LayerCache
    sinks: torch.Tensor | None
    turns: torch.Tensor | None = None


def write_layer(slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cache: LayerCache) -> None:
    """Write the rows' keys [T, KV, Dk] and values [T, KV, Dv] to their slots [T]; a slot of -1 takes nothing."""
    key, value = _dense_heads(key), _dense_heads(value)
    num_rows, num_heads, key_dim = key.shape
    block_k, block_v = _power(key_dim), _power(value.shape[2])
    block_h = min(_power(num_heads), max(1, WRITE_ELEMENTS // max(block_k, block_v)))
    write_cache[num_rows, -(-num_heads // block_h)](
        key, value, cache.keys, cache.values, slots,
        *key.stride()[:2], *value.stride()[:2], *cache.keys.stride()[:2], *cache.values.stride()[:2],
        num_heads,
        KEY_DIM=key_dim, VALUE_DIM=value.shape[2], BLOCK_H=block_h, BLOCK_K=block_k, BLOCK_V=block_v,
    )  # fmt: skip


def attend_layer(call: LayerCall, launch: Launch, parts: Parts, machine: Machine) -> None:
    """Attend over the items of the launch, then merge the rows that have several; a row without any becomes zeros."""
    spec, dtype = call.spec, call.query.dtype
    if len(launch.narrow):
        _attend(call, launch, parts, launch.narrow, narrow_tile(spec, dtype, machine))
    if len(launch.wide):
        _attend(call, launch, parts, launch.wide, wide_tile(spec, dtype, machine))
    if len(launch.merges):
        merge_parts[len(launch.merges), spec.num_heads](
            parts.outputs, parts.lse, _sinks(call), call.output, launch.merges,
            *call.output.stride()[:2], spec.num_heads,
            VALUE_DIM=spec.value_dim, BLOCK_V=_power(spec.value_dim), BLOCK_P=MERGE_BLOCK,
            HAS_SINKS=call.sinks is not None,
        )  # fmt: skip


def _attend(call: LayerCall, launch: Launch, parts: Parts, items: torch.Tensor, tile: Tile) -> None:
    spec, cache, output = call.spec, call.cache, call.output
    query = _dense_heads(call.query)
    factor, cap = _factors(spec)
    turns = parts.lse if call.turns is None else call.turns
    attend_items[len(items), spec.num_kv_heads](
        query, cache.keys, cache.values, output, parts.outputs, parts.lse, _sinks(call), turns,
        items, launch.entries, launch.pages,
        *query.stride()[:2], *cache.keys.stride()[:2], *cache.values.stride()[:2], *output.stride()[:2],
        spec.num_heads, factor, cap,
        GROUP=spec.num_heads // spec.num_kv_heads, KEY_DIM=spec.key_dim, VALUE_DIM=spec.value_dim,
        PAGE=launch.page_tokens, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
        BLOCK_K=block_dim(spec.key_dim), BLOCK_V=block_dim(spec.value_dim),
        HAS_SOFTCAP=spec.softcap is not None, HAS_SINKS=call.sinks is not None,
        PRECISION="widened" if is_interpreted() else "ieee",
        TURN_DIMS=0 if call.turns is None else call.turns.shape[1],
        TURN_FIRST=0 if spec.rotary is None else spec.rotary.first,
        TURN_PAIRS=spec.rotary is not None and spec.rotary.pairs,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


def _sinks(call: LayerCall) -> torch.Tensor:
    """Return the sink logits, or what a kernel that does not read them takes in their place."""
    return call.output if call.sinks is None else call.sinks


def _factors(spec: LayerSpec) -> tuple[float, float]:
    """Return what a product of query and key is multiplied by, and the cap, so that logits come out in base two."""
    if spec.softcap is None:
        return spec.scale * LOG2_E, 0.0
    return 2.0 * spec.scale / spec.softcap, spec.softcap * LOG2_E


def _dense_heads(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor with its last dimension dense, as the kernels read it."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _power(width: int) -> int:
    return 1 << (width - 1).bit_length()

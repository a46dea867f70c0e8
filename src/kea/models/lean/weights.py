"""The weights of the lean decoder: taken from a transformers model, fused, kept in 16 bits where that loses nothing.

Owns the names under which checkpoints hold their weights and the layout in which our kernels read them. Knows no steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kea.kernels.arena import Arena
from kea.kernels.gates import GATES
from kea.kernels.matrix import PanelMatrix, pack_fp16, pack_halves, pack_matrix, padded
from kea.models.lean.spec import DecoderSpec

F32 = NDArray[np.float32]

NO_BIAS: F32 = np.empty(0, np.float32)

# The names of projections in checkpoints: fused already, or one by one.
QKV = (("qkv_proj",), ("q_proj", "k_proj", "v_proj"))
OUT = (("o_proj",),)
GATE_UP = (("gate_up_proj",), ("gate_proj", "up_proj"))
DOWN = (("down_proj",),)

Names = tuple[tuple[str, ...], ...]
Stack = Callable[[Sequence[torch.Tensor]], PanelMatrix]
"""Packs matrices, one below the other."""


@dataclass(frozen=True, slots=True)
class Linear:
    """x -> x W^T + b. `bias` [padded N], or [0] where there is none."""

    weight: PanelMatrix
    bias: F32


@dataclass(frozen=True, slots=True)
class Norm:
    """`weight` [K] with the unit offset added; `bias` [K], or [0] where there is none."""

    weight: F32
    bias: F32


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. `qkv` stacks queries, keys and values; in `gate_up` 32 rows of the gate and of the up projection
    alternate (`kea.kernels.gates`), each padded to whole 32.

    `query_norm`, `key_norm`: norms of one head, of all heads as one row, or None.
    """

    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear
    before_attention: Norm | None
    after_attention: Norm | None
    before_mlp: Norm | None
    after_mlp: Norm | None
    query_norm: Norm | None
    key_norm: Norm | None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """The whole model. A tied `head` shares its matrix with `embedding` [V, K]."""

    embedding: PanelMatrix
    layers: tuple[LayerWeights, ...]
    final_norm: Norm
    head: Linear


def fuse_weights(model: Any, spec: DecoderSpec, *, is_tied: bool, quantize: bool = False) -> DecoderWeights:
    """Copy the weights of a transformers model on the CPU into our layout; `quantize`: matrices as int8.

    `is_tied`: the output matrix is the embedding's. `model` may be anything that has its weights under the same names,
    in fp32, bfloat16 or fp16; a matrix keeps its type, whatever the others'.
    """

    with torch.no_grad():
        stacked = _stack_into(Arena(), quantize=quantize)
        embedding = stacked([model.get_input_embeddings().weight])
        head = model.get_output_embeddings()
        return DecoderWeights(
            embedding=embedding,
            layers=_fuse_layers(list(model.model.layers), spec, quantize=quantize),
            final_norm=_norm(model.model.norm, spec),
            head=Linear(embedding if is_tied else stacked([head.weight]), _bias([head])),
        )


def _fuse_layers(layers: Sequence[Any], spec: DecoderSpec, *, quantize: bool) -> tuple[LayerWeights, ...]:
    """Fuse every so-manieth layer on each of torch's threads: half of the time is the system's, for fresh pages."""
    num_threads = torch.get_num_threads()

    def fuse(first: int) -> list[LayerWeights]:
        stacked = _stack_into(Arena(), quantize=quantize)
        with torch.no_grad():
            return [_layer(layer, spec, stacked) for layer in layers[first::num_threads]]

    with ThreadPoolExecutor(num_threads, "kea-fusing") as threads:
        shares = list(threads.map(fuse, range(num_threads)))
    return tuple(shares[index % num_threads][index // num_threads] for index in range(len(layers)))


def _stack_into(arena: Arena, *, quantize: bool) -> Stack:
    def stacked(parts: Sequence[torch.Tensor]) -> PanelMatrix:
        if all(part.dtype == torch.bfloat16 for part in parts) and not quantize:
            return pack_halves([part.contiguous().view(torch.uint16).numpy() for part in parts], arena)
        if all(part.dtype == torch.float16 for part in parts) and not quantize:
            return pack_fp16([part.contiguous().numpy() for part in parts], arena)
        whole = np.concatenate([part.detach().float().numpy() for part in parts])
        return pack_matrix(whole, quantize=quantize, arena=arena)

    return stacked


def round_weights(model: Any) -> None:
    """Give the matrices of a transformers model the values that they have as int8, so that it can prove these."""
    matrices = {model.get_input_embeddings(), *(m for m in model.modules() if isinstance(m, torch.nn.Linear))}
    with torch.no_grad():
        for weight in {matrix.weight for matrix in matrices}:
            packed = pack_matrix(weight.detach().contiguous().numpy(), quantize=True)
            weight.copy_(torch.from_numpy(packed.rows(np.arange(packed.num_columns))))


def _layer(layer: Any, spec: DecoderSpec, stacked: Stack) -> LayerWeights:
    attention, mlp, names = layer.self_attn, layer.mlp, spec.family.norms

    def norm_at(owner: Any, name: str | None) -> Norm | None:
        module = None if name is None else getattr(owner, name, None)
        return None if module is None else _norm(module, spec)

    def linear(owner: Any, choices: Names) -> Linear:
        return _linear(find_projections(owner, choices), stacked)

    return LayerWeights(
        qkv=linear(attention, QKV),
        out=linear(attention, OUT),
        gate_up=_alternating(mlp, stacked),
        down=linear(mlp, DOWN),
        before_attention=norm_at(layer, names.before_attention),
        after_attention=norm_at(layer, names.after_attention),
        before_mlp=norm_at(layer, names.before_mlp),
        after_mlp=norm_at(layer, names.after_mlp),
        query_norm=norm_at(attention, "q_norm"),
        key_norm=norm_at(attention, "k_norm"),
    )


def find_projections(owner: Any, choices: Names) -> list[Any]:
    """Return the modules of the first set of names that `owner` has."""
    names = next(names for names in choices if hasattr(owner, names[0]))
    return [getattr(owner, name) for name in names]


def _linear(modules: Sequence[Any], stacked: Stack) -> Linear:
    return Linear(stacked([module.weight for module in modules]), _bias(modules))


def _alternating(mlp: Any, stacked: Stack) -> Linear:
    """Fuse the gate and the up projection, GATES rows of each in turn."""
    modules = find_projections(mlp, GATE_UP)
    weights = [module.weight for module in modules]
    gate, up = weights if len(weights) == 2 else weights[0].chunk(2)
    pairs = zip(_in_steps(gate), _in_steps(up), strict=True)
    weight = stacked([part for pair in pairs for part in pair])
    bias = _bias(modules)
    if bias.size:
        size = len(gate)
        halves = (_in_steps(torch.from_numpy(bias[first : first + size])) for first in (0, size))
        bias = _array(torch.cat([part for pair in zip(*halves, strict=True) for part in pair]))
    return Linear(weight, bias)


def _in_steps(rows: torch.Tensor) -> list[torch.Tensor]:
    """Cut rows, or numbers, into GATES at a time, the last ones with zeros behind them."""
    parts = [*torch.split(rows, GATES)]
    missing = GATES - len(parts[-1])
    if missing:
        parts[-1] = torch.cat([parts[-1], parts[-1].new_zeros(missing, *rows.shape[1:])])
    return parts


def _bias(modules: Sequence[Any]) -> F32:
    biases = [getattr(module, "bias", None) for module in modules]
    if all(bias is None for bias in biases):
        return NO_BIAS
    parts = [
        torch.zeros(module.weight.shape[0]) if bias is None else bias.detach().float()
        for module, bias in zip(modules, biases, strict=True)
    ]
    bias = torch.cat(parts)
    return _array(torch.nn.functional.pad(bias, (0, padded(len(bias)) - len(bias))))


def _norm(module: Any, spec: DecoderSpec) -> Norm:
    weight = module.weight.detach().float()
    bias = getattr(module, "bias", None)
    return Norm(
        _array(weight + 1.0 if spec.family.unit_offset else weight), NO_BIAS if bias is None else _array(bias.detach())
    )


def _array(tensor: torch.Tensor) -> F32:
    array: F32 = tensor.float().clone().numpy()
    return array

"""The weights of the lean decoder on a GPU: those of a transformers model, what is multiplied together side by side.

A fused matrix takes the place of its parts in the model, so that nothing is there twice. Knows no steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kea.models.lean.spec import DecoderSpec
from kea.models.lean.weights import DOWN, GATE_UP, OUT, QKV, find_projections
from kea.models.rotary import Frequencies


@dataclass(frozen=True, slots=True)
class DeviceLinear:
    """x -> x W^T + b: W [N, K], b [N] or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class DeviceNorm:
    """`weight` [K] fp32 with the unit offset added; `bias` [K] fp32 or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class DeviceLayer:
    """One layer; names as in `LayerWeights`."""

    qkv: DeviceLinear
    out: DeviceLinear
    gate_up: DeviceLinear
    down: DeviceLinear
    before_attention: DeviceNorm | None
    after_attention: DeviceNorm | None
    before_mlp: DeviceNorm | None
    after_mlp: DeviceNorm | None
    query_norm: DeviceNorm | None
    key_norm: DeviceNorm | None


@dataclass(frozen=True, slots=True)
class DevicePhases:
    """The rotary frequencies of all types of layers, one behind the other: `turns` [F] fp64 per position, `factors` [F]
    fp32 on cos and sin, and by type the first and the number of its own.
    """

    turns: torch.Tensor
    factors: torch.Tensor
    columns: Mapping[str | None, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class DeviceWeights:
    """The whole model."""

    embedding: torch.Tensor
    layers: tuple[DeviceLayer, ...]
    final_norm: DeviceNorm
    head: DeviceLinear
    phases: DevicePhases


def has_plain_projections(model: Any) -> bool:
    """Whether the layers' matrices are plain ones of the model's type: not quantised, in modules of torch's own."""
    dtype = model.get_input_embeddings().weight.dtype
    modules: list[Any] = []
    for layer in model.model.layers:
        for owner, choices in ((layer.self_attn, (QKV, OUT)), (layer.mlp, (GATE_UP, DOWN))):
            modules += [module for names in choices for module in find_projections(owner, names)]
    return all(type(module) is torch.nn.Linear and module.weight.dtype == dtype for module in modules)


def fuse_in_place(model: Any, spec: DecoderSpec, rotary: Mapping[str | None, Frequencies]) -> DeviceWeights:
    """Return the weights of a transformers model where they are; its own parts become views of what was fused."""
    with torch.no_grad():
        return DeviceWeights(
            embedding=model.get_input_embeddings().weight.detach(),
            layers=tuple(_layer(layer, spec) for layer in model.model.layers),
            final_norm=_norm(model.model.norm, spec),
            head=_fuse([model.get_output_embeddings()]),
            phases=_phases(rotary, model.get_input_embeddings().weight.device),
        )


def _layer(layer: Any, spec: DecoderSpec) -> DeviceLayer:
    attention, mlp, names = layer.self_attn, layer.mlp, spec.family.norms

    def norm_at(owner: Any, name: str | None) -> DeviceNorm | None:
        module = None if name is None else getattr(owner, name, None)
        return None if module is None else _norm(module, spec)

    return DeviceLayer(
        qkv=_fuse(find_projections(attention, QKV)),
        out=_fuse(find_projections(attention, OUT)),
        gate_up=_fuse(find_projections(mlp, GATE_UP)),
        down=_fuse(find_projections(mlp, DOWN)),
        before_attention=norm_at(layer, names.before_attention),
        after_attention=norm_at(layer, names.after_attention),
        before_mlp=norm_at(layer, names.before_mlp),
        after_mlp=norm_at(layer, names.after_mlp),
        query_norm=norm_at(attention, "q_norm"),
        key_norm=norm_at(attention, "k_norm"),
    )


def _fuse(modules: Sequence[Any]) -> DeviceLinear:
    biases = [getattr(module, "bias", None) for module in modules]
    weight = _joined([module.weight for module in modules])
    if all(bias is None for bias in biases):
        return DeviceLinear(weight, None)
    for module, bias in zip(modules, biases, strict=True):
        if bias is None:
            module.bias = torch.nn.Parameter(weight.new_zeros(module.weight.shape[0]), requires_grad=False)
    return DeviceLinear(weight, _joined([module.bias for module in modules]))


def _joined(parts: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """Return the parts as one tensor, which they are views of from now on."""
    if len(parts) == 1:
        return parts[0].detach()
    whole = torch.cat([part.detach() for part in parts])
    first = 0
    for part in parts:
        part.data = whole[first : first + len(part)]
        first += len(part)
    return whole


def _norm(module: Any, spec: DecoderSpec) -> DeviceNorm:
    weight, bias = module.weight.detach().float(), getattr(module, "bias", None)
    offset = weight + 1.0 if spec.family.unit_offset else weight.clone()
    return DeviceNorm(offset, None if bias is None else bias.detach().float())


def _phases(rotary: Mapping[str | None, Frequencies], device: torch.device) -> DevicePhases:
    columns: dict[str | None, tuple[int, int]] = {}
    turns: list[torch.Tensor] = []
    factors: list[torch.Tensor] = []
    for kind, found in rotary.items():
        columns[kind] = (sum(len(own) for own in turns), len(found.values))
        turns.append(found.values.to(device, torch.float64) / (2.0 * torch.pi))
        factors.append(torch.full((len(found.values),), found.scale, dtype=torch.float32, device=device))
    return DevicePhases(torch.cat(turns), torch.cat(factors), columns)

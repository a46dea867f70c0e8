"""Our attention inside transformers' modelling code: the functions it calls, and what they are bound to.

Every attention module of a loaded model carries a `BoundLayer`; the function registered with transformers finds it on
the module that calls it. So one way serves all families, whatever keywords they forward. Knows no requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from kea.attention.base import LayerCache, LayerSpec, PreparedPlan

ATTENTION_NAME = "kea"
PROBE_NAME = "kea_probe"
LAYER_ATTRIBUTE = "kea_layer"

MaskFunction = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class StepCalls:
    """The step that a model's layers are in: set before its forward, cleared after it. One forward at a time."""

    def __init__(self) -> None:
        self._prepared: PreparedPlan | None = None
        self._cache: tuple[LayerCache, ...] = ()
        self.num_calls = 0

    def begin(self, prepared: PreparedPlan, cache: tuple[LayerCache, ...]) -> None:
        self._prepared = prepared
        self._cache = cache
        self.num_calls = 0

    def end(self) -> None:
        self._prepared = None
        self._cache = ()

    @property
    def prepared(self) -> PreparedPlan:
        assert self._prepared is not None, "attention was called outside a step"
        return self._prepared

    def cache_of(self, layer: int) -> LayerCache:
        self.num_calls += 1
        return self._cache[layer]


@dataclass(frozen=True, slots=True)
class BoundLayer:
    """What one attention module needs in order to run our attention."""

    index: int
    spec: LayerSpec
    calls: StepCalls


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One call of the probe: the module, the shapes it used, the mask that its model made for it (None: none)."""

    module: torch.nn.Module
    spec: LayerSpec
    mask: MaskFunction | None


class ProbeRecorder:
    """Collects the calls of one probing forward."""

    def __init__(self) -> None:
        self.calls: list[RecordedCall] = []


def register() -> None:
    """Make `kea` and `kea_probe` known to transformers as attention implementations. Harmless to repeat.

    `kea` has no mask function: transformers then makes no mask, and does not look through the positions on the device
    for the beginnings of sequences, which would wait for it in every step.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION_NAME, run_attention)
    AttentionInterface.register(PROBE_NAME, record_attention)
    AttentionMaskInterface.register(PROBE_NAME, carry_mask_function)


def run_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, T, Dk]
    key: torch.Tensor,  # [1, KV, T, Dk]
    value: torch.Tensor,  # [1, KV, T, Dv]
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as the module's bound layer says; transformers' signature, result [1, T, H, Dv]."""
    del attention_mask  # the plan says who sees what
    layer: BoundLayer = getattr(module, LAYER_ATTRIBUTE)
    output = layer.calls.prepared.attend(
        layer.spec,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        layer.calls.cache_of(layer.index),
        sinks=kwargs.get("s_aux"),
    )
    return output[None], None


def record_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Record the call at the module's `ProbeRecorder` and return zeros of the right shape."""
    recorder: ProbeRecorder = getattr(module, LAYER_ATTRIBUTE)
    scale = kwargs.get("scaling")
    spec = LayerSpec(
        num_heads=query.shape[1],
        num_kv_heads=key.shape[1],
        key_dim=key.shape[3],
        value_dim=value.shape[3],
        scale=float(key.shape[3] ** -0.5 if scale is None else scale),
        window=kwargs.get("sliding_window"),
        softcap=kwargs.get("softcap"),
    )
    recorder.calls.append(RecordedCall(module, spec, getattr(attention_mask, "kea_mask_function", None)))
    return query.new_zeros(1, query.shape[2], spec.num_heads, spec.value_dim), None


def carry_mask_function(*_: object, mask_function: MaskFunction, **__: object) -> torch.Tensor:
    """Return a placeholder that carries the rule by which the model would mask, for the probe to compare with ours."""
    mask = torch.zeros(1, 1, 1, 1)
    mask.kea_mask_function = mask_function  # type: ignore[attr-defined]
    return mask

"""The lean decoder's forward: one straight line over the layers, in few and large kernel calls, on the CPU in fp32.

Owns the weights in our layout and the buffers of a step; one forward at a time. Knows no requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kea.attention.base import AttentionBackend, LayerCache, PreparedPlan
from kea.attention.jit import running_kernels
from kea.models.base import ModelFacts, StepInput
from kea.models.hosted import allocate_cache
from kea.models.lean import kernels
from kea.models.lean.products import apply_linear
from kea.models.lean.spec import DecoderSpec
from kea.models.lean.weights import NO_BIAS, DecoderWeights, LayerWeights, Linear, Norm, expand
from kea.models.rotary import Frequencies

F32 = NDArray[np.float32]
Phases = tuple[F32, F32, bool]


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward carries through the layers: the hidden rows `x` [T, K], phases by layer type, the plan."""

    x: F32
    phases: Mapping[str | None, Phases]
    still: Phases
    prepared: PreparedPlan
    num_threads: int


class Buffers:
    """Named fp32 arrays that grow and are reused by every layer and step."""

    def __init__(self) -> None:
        self._arrays: dict[str, F32] = {}

    def get(self, name: str, *shape: int) -> F32:
        size = int(np.prod(shape))
        array = self._arrays.get(name)
        if array is None or array.size < size:
            array = self._arrays[name] = np.empty(size, np.float32)
        return array[:size].reshape(shape)


class LeanDecoder:
    """A `DecoderModel` for the shapes that a `DecoderSpec` describes. `rotary`: frequencies by layer type."""

    def __init__(
        self,
        spec: DecoderSpec,
        weights: DecoderWeights,
        facts: ModelFacts,
        backend: AttentionBackend,
        *,
        rotary: Mapping[str | None, Frequencies],
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._facts = facts
        self._backend = backend
        self._rotary = {kind: (found.values.cpu().numpy(), found.scale) for kind, found in rotary.items()}
        self._buffers = Buffers()

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    @property
    def weight_dtypes(self) -> frozenset[str]:
        """The types in which the layers' matrices are held: float32, or uint16 for bfloat16."""
        layers = self._weights.layers
        matrices = (linear.weight for layer in layers for linear in (layer.qkv, layer.out, layer.gate_up, layer.down))
        return frozenset(str(matrix.dtype) for matrix in matrices)

    def create_cache(self, num_slots: int) -> tuple[LayerCache, ...]:
        return allocate_cache(self._facts, num_slots)

    def forward(self, step: StepInput, cache: tuple[LayerCache, ...]) -> torch.Tensor:
        with torch.inference_mode(), running_kernels() as num_threads:
            state = self._begin(step, num_threads)
            for index, layer in enumerate(self._weights.layers):
                self._attend(state, layer, index, cache[index])
                self._mix(state, layer)
            return torch.from_numpy(self._logits(state, step.logit_rows.numpy()))

    def _begin(self, step: StepInput, num_threads: int) -> Step:
        x = expand(self._weights.embedding[step.token_ids.numpy()])
        if self._spec.embedding_scale != 1.0:
            x *= np.float32(self._spec.embedding_scale)
        positions = step.positions.numpy().astype(np.float64)
        none = np.empty((len(positions), 0), np.float32)
        phases = {kind: self._phases(positions, kind) for kind in self._rotary}
        return Step(x, phases, (none, none, False), self._backend.prepare(step.plan), num_threads)

    def _phases(self, positions: NDArray[np.float64], kind: str | None) -> Phases:
        """Return cos and sin [T, R], formed in fp64 as in `kea.models.rotary`."""
        frequencies, scale = self._rotary[kind]
        phases = np.remainder(positions[:, None] * frequencies, 2 * np.pi).astype(np.float32)
        factor = np.float32(scale)
        return np.cos(phases) * factor, np.sin(phases) * factor, self._spec.family.pairs

    def _attend(self, state: Step, layer: LayerWeights, index: int, cache: LayerCache) -> None:
        spec = self._facts.layers[index]
        num_rows = len(state.x)
        qkv = self._linear("qkv", self._normed(state.x, layer.before_attention), layer.qkv, state.num_threads)
        query, key, value = self._heads(state, qkv, layer, index)
        attended = state.prepared.attend(
            spec, torch.from_numpy(query), torch.from_numpy(key), torch.from_numpy(value), cache
        )
        out = self._linear("sum", attended.numpy().reshape(num_rows, -1), layer.out, state.num_threads)
        self._add(state.x, out, layer.after_attention)

    def _phases_of(self, state: Step, index: int) -> Phases:
        if not self._spec.rotates[index]:
            return state.still
        kind = self._spec.layer_types[index]
        return state.phases[kind if kind in state.phases else None]

    def _heads(self, state: Step, qkv: F32, layer: LayerWeights, index: int) -> tuple[F32, F32, F32]:
        spec, num_rows = self._facts.layers[index], len(qkv)
        query = self._buffers.get("query", num_rows, spec.num_heads, spec.key_dim)
        key = self._buffers.get("key", num_rows, spec.num_kv_heads, spec.key_dim)
        value = self._buffers.get("value", num_rows, spec.num_kv_heads, spec.value_dim)
        first_key = spec.num_heads * spec.key_dim
        first_value = first_key + spec.num_kv_heads * spec.key_dim
        phases = self._phases_of(state, index)
        kernels.place_heads(qkv, 0, query, self._head_norm(layer.query_norm), phases)
        kernels.place_heads(qkv, first_key, key, self._head_norm(layer.key_norm), phases)
        kernels.place_heads(qkv, first_value, value, self._head_norm(None), state.still)
        return query, key, value

    def _head_norm(self, norm: Norm | None) -> tuple[F32, F32, float]:
        if norm is None:
            return NO_BIAS, NO_BIAS, self._spec.norm_eps
        return norm.weight, norm.bias, self._spec.norm_eps

    def _mix(self, state: Step, layer: LayerWeights) -> None:
        """The gated MLP."""
        normed = self._normed(state.x, layer.before_mlp)
        both = self._linear("gate_up", normed, layer.gate_up, state.num_threads)
        gated = self._buffers.get("gated", len(both), self._spec.intermediate_size)
        kernels.activate(both, gated, self._spec.activation == "gelu_tanh")
        self._add(state.x, self._linear("sum", gated, layer.down, state.num_threads), layer.after_mlp)

    def _logits(self, state: Step, rows: NDArray[np.int64]) -> F32:
        normed = self._normed(np.ascontiguousarray(state.x[rows]), self._weights.final_norm)
        logits = np.empty((len(rows), self._facts.vocab_size), np.float32)
        apply_linear(normed, self._weights.head, logits, state.num_threads)
        if self._spec.logit_scale != 1.0:
            logits *= np.float32(self._spec.logit_scale)
        if self._spec.logit_softcap is not None:
            cap = np.float32(self._spec.logit_softcap)
            logits = np.tanh(logits / cap) * cap
        return logits

    def _normed(self, x: F32, norm: Norm | None) -> F32:
        if norm is None:
            return x
        out = self._buffers.get("normed", *x.shape)
        kernels.normalise_rows(x, (norm.weight, norm.bias), out, self._spec.norm_eps, self._spec.family.centred)
        return out

    def _linear(self, name: str, x: F32, linear: Linear, num_threads: int) -> F32:
        out = self._buffers.get(name, len(x), linear.weight.shape[0])
        apply_linear(x, linear, out, num_threads)
        return out

    def _add(self, x: F32, y: F32, norm: Norm | None) -> None:
        """x += y, normalised first where the family has a norm behind the block."""
        if norm is not None:
            kernels.normalise_rows(y, (norm.weight, norm.bias), y, self._spec.norm_eps, self._spec.family.centred)
        kernels.add_scaled(x, y, self._spec.residual_scale)

"""The lean decoder's forward on a GPU: four launches a layer beside its four matrix products and its attention.

Between the products stand kernels of our own; keys and values go from them straight into the cache. Reads nothing but
its tensors and its prepared plan, so that it can be captured. Owns the weights; one forward at a time. Knows no
requests.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.nn.functional import linear

from kea.attention.base import AttentionBackend, LayerCache, PreparedPlan, WritingPlan
from kea.errors import ModelLoadFailed
from kea.models.base import ModelFacts, StepInput
from kea.models.hosted import allocate_cache
from kea.models.lean import triton_steps as steps
from kea.models.lean.spec import DecoderSpec, try_read_spec
from kea.models.lean.triton_weights import DeviceWeights, fuse_in_place, has_plain_projections
from kea.models.probe import prove_equal
from kea.models.rotary import try_double_rotary

logger = logging.getLogger(__name__)

NO_COLUMNS = (0, 0)


class TritonDecoder:
    """A `DecoderModel` for the shapes that a `DecoderSpec` describes, whose backend's plans are `WritingPlan`s."""

    def __init__(self, spec: DecoderSpec, weights: DeviceWeights, facts: ModelFacts, backend: AttentionBackend) -> None:
        self._spec = spec
        self._weights = weights
        self._facts = facts
        self._backend = backend
        self._embedding_scale = spec.embedding_scale
        if spec.family.scales_embedding:  # by transformers' code in the embedding's own type
            self._embedding_scale = float(torch.tensor(spec.embedding_scale, dtype=weights.embedding.dtype))
        self._heads = [
            steps.Heads(layer, shape, spec, self._columns_of(index))
            for index, (layer, shape) in enumerate(zip(weights.layers, facts.layers, strict=True))
        ]

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    def create_cache(self, num_slots: int) -> tuple[LayerCache, ...]:
        return allocate_cache(self._facts, num_slots)

    def forward(self, step: StepInput, cache: tuple[LayerCache, ...]) -> torch.Tensor:
        return self.compute(step, self._backend.prepare(step.plan), cache).float()

    def compute(self, step: StepInput, prepared: PreparedPlan, cache: tuple[LayerCache, ...]) -> torch.Tensor:
        """Run the layers over the step's tensors with a plan that is prepared already; nothing waits for the device."""
        assert isinstance(prepared, WritingPlan), "the backend's plans do not let others write keys and values"
        weights, spec = self._weights, self._spec
        with torch.inference_mode():
            hidden, phases = steps.begin(
                step.token_ids, step.positions, weights.embedding, weights.phases, self._embedding_scale
            )
            result, after = None, None
            for index, layer in enumerate(weights.layers):
                rows = steps.enter(hidden, result, (after, layer.before_attention), spec)
                attended = self._attend(index, rows, phases, prepared, cache[index])
                out = linear(attended, layer.out.weight, layer.out.bias)
                rows = steps.enter(hidden, out, (layer.after_attention, layer.before_mlp), spec)
                gated = steps.gate(linear(rows, layer.gate_up.weight, layer.gate_up.bias), spec)
                result, after = linear(gated, layer.down.weight, layer.down.bias), layer.after_mlp
            last = steps.enter(hidden, result, (after, weights.final_norm), spec, step.logit_rows)
            return self._finish(linear(last, weights.head.weight, weights.head.bias))

    def _attend(
        self,
        index: int,
        rows: torch.Tensor,
        phases: tuple[torch.Tensor, torch.Tensor],
        prepared: WritingPlan,
        cache: LayerCache,
    ) -> torch.Tensor:
        """Return the attention of a layer [T, H * Dv]."""
        heads = self._heads[index]
        qkv = linear(rows, heads.layer.qkv.weight, heads.layer.qkv.bias)
        query = steps.heads(qkv, heads, phases, prepared.slots, cache)
        return prepared.attend_written(heads.shape, query, cache).flatten(1)

    def _finish(self, logits: torch.Tensor) -> torch.Tensor:
        """Scale and cap the logits, where the model does so."""
        scale, cap = self._spec.logit_scale, self._spec.logit_softcap
        if scale != 1.0:
            logits = logits.float() * scale
        return logits if cap is None else torch.tanh(logits.float() / cap) * cap

    def _columns_of(self, layer: int) -> tuple[int, int]:
        if not self._spec.rotates[layer]:
            return NO_COLUMNS
        columns, kind = self._weights.phases.columns, self._spec.layer_types[layer]
        return columns[kind if kind in columns else None]


def try_prove_triton(
    model: Any, facts: ModelFacts, expected: torch.Tensor, attention: AttentionBackend
) -> TritonDecoder | None:
    """Return our own decoder of a transformers model that is covered, proven equal; None where it is not.

    The model's matrices are then views of fused ones, with the same values.
    """
    spec = try_read_spec(model.config.get_text_config())
    rotary = None if spec is None else try_double_rotary(model.model.rotary_emb)
    if spec is None or rotary is None or not has_plain_projections(model):
        return None
    decoder = TritonDecoder(spec, fuse_in_place(model, spec, rotary.sets), facts, attention)
    try:
        prove_equal(decoder, expected)
    except (ModelLoadFailed, RuntimeError) as error:  # Triton's errors of a kernel that a device cannot run among them
        logger.warning("The lean decoder does not run %s exactly, transformers' code runs it: %s", facts.name, error)
        return None
    finally:
        if expected.is_cuda:
            torch.cuda.empty_cache()  # the parts of what was fused lie in it, too small to be used for anything
    return decoder

"""A decoder run by transformers' own modelling code with our attention in it: breadth, and the oracle of faster ones.

Owns the loaded module and its binding to the backend; one forward at a time. Knows no requests.
"""

from __future__ import annotations

from typing import Any

import torch

from kea.attention.base import AttentionBackend, LayerCache, LayerSpec
from kea.errors import ContextLengthExceeded
from kea.models.base import ModelFacts, StepInput
from kea.models.calls import ATTENTION_NAME, LAYER_ATTRIBUTE, BoundLayer, StepCalls


class HostedDecoder:
    """A `DecoderModel` over a transformers model whose attention modules were found by `discover_layers`.

    `position_rows` is the number of learned position embeddings; None where positions are rotary.
    """

    def __init__(
        self,
        model: Any,
        facts: ModelFacts,
        backend: AttentionBackend,
        modules: tuple[torch.nn.Module, ...],
        *,
        position_rows: int | None = None,
    ) -> None:
        self._model = model
        self._facts = facts
        self._backend = backend
        self._position_rows = position_rows
        self._calls = StepCalls()
        for index, (module, spec) in enumerate(zip(modules, facts.layers, strict=True)):
            setattr(module, LAYER_ATTRIBUTE, BoundLayer(index, spec, self._calls))
        model.set_attn_implementation(ATTENTION_NAME)

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    @property
    def compute_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self._facts.dtype)
        return dtype

    def create_cache(self, num_slots: int) -> tuple[LayerCache, ...]:
        return tuple(self._layer_cache(spec, num_slots) for spec in self._facts.layers)

    def _layer_cache(self, spec: LayerSpec, num_slots: int) -> LayerCache:
        def zeros(width: int) -> torch.Tensor:
            return torch.zeros(num_slots, spec.num_kv_heads, width, dtype=self.compute_dtype, device=self._facts.device)

        return LayerCache(zeros(spec.key_dim), zeros(spec.value_dim))

    def forward(self, step: StepInput, cache: tuple[LayerCache, ...]) -> torch.Tensor:
        self._check_positions(step.positions)
        self._calls.begin(self._backend.prepare(step.plan), cache)
        try:
            with torch.inference_mode():
                logits: torch.Tensor = self._model(
                    input_ids=step.token_ids[None],
                    position_ids=step.positions[None],
                    use_cache=False,
                    logits_to_keep=step.logit_rows,
                ).logits
            assert self._calls.num_calls == len(cache), "a layer did not run our attention exactly once"
        finally:
            self._calls.end()
        return logits[0].float()

    def _check_positions(self, positions: torch.Tensor) -> None:
        """A learned position embedding has no row past its table, and on a GPU reading there ends the process."""
        if self._position_rows is None:
            return
        last = int(positions.max())
        if last >= self._position_rows:
            raise ContextLengthExceeded(
                f"Position {last} is past the {self._position_rows} positions that {self._facts.name} has learned.",
                param="max_len",
            )

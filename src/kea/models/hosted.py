"""A decoder run by transformers' own modelling code with our attention in it: breadth, and the oracle of faster ones.

Owns the loaded module and its binding to the backend; one forward at a time. Knows no requests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kea.attention.base import AttentionBackend, LayerCache, PreparedPlan, StepPlan
from kea.attention.storage import row_width
from kea.errors import ContextLengthExceeded
from kea.kernels.arena import Arena
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

    def create_cache(self, num_slots: int) -> tuple[LayerCache, ...]:
        return allocate_cache(self._facts, num_slots)

    def forward(self, step: StepInput, cache: tuple[LayerCache, ...]) -> torch.Tensor:
        self._check_positions(step.plan)
        return self.compute(step, self._backend.prepare(step.plan), cache).float()

    def compute(self, step: StepInput, prepared: PreparedPlan, cache: tuple[LayerCache, ...]) -> torch.Tensor:
        """Run the layers over the step's tensors with a plan that is prepared already. Nothing of ours waits for the
        device here; some families' own code does.
        """
        self._calls.begin(prepared, cache)
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
        return logits[0]

    def _check_positions(self, plan: StepPlan) -> None:
        """A learned position embedding has no row past its table, and on a GPU reading there ends the process."""
        if self._position_rows is None:
            return
        last = max(sequence.position + sequence.num_queries for sequence in plan.sequences) - 1
        if last >= self._position_rows:
            raise ContextLengthExceeded(
                f"Position {last} is past the {self._position_rows} positions that {self._facts.name} has learned.",
                param="max_len",
            )


def allocate_cache(facts: ModelFacts, num_slots: int) -> tuple[LayerCache, ...]:
    """Return a zeroed `LayerCache` of `num_slots` slots per layer, on the model's device, kept as the facts say.

    On a CPU the system gives memory where it is first written, and in huge pages where it has them.
    """
    dtype: torch.dtype = getattr(torch, facts.kv_dtype)
    arena = Arena()

    def zeros(num_kv_heads: int, head_dim: int) -> torch.Tensor:
        shape = (num_slots, num_kv_heads, row_width(dtype, head_dim))
        if facts.device != "cpu":
            return torch.zeros(shape, dtype=dtype, device=facts.device)
        # torch writes its zeros: seconds for a pool of gigabytes, most of which may never be used
        untouched = arena.zeros((*shape[:-1], shape[-1] * dtype.itemsize), np.uint8)
        return torch.from_numpy(untouched).view(dtype)

    return tuple(
        LayerCache(zeros(spec.num_kv_heads, spec.key_dim), zeros(spec.num_kv_heads, spec.value_dim))
        for spec in facts.layers
    )

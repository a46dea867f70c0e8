"""Captured CUDA graphs on a GPU: replayed steps give what the same decoder computes without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kea.attention.base import LayerCache, StepPlan
from kea.models import DecoderModel, ModelFacts, load_model
from kea.models.base import StepInput
from kea.models.graphs import GraphedDecoder
from tests.models.paging import PAGE_TOKENS, run_paged

pytestmark = pytest.mark.gpu

DEVICE = "cuda:0"
ALLOWED = {"float32": 1e-4, "bfloat16": 0.06}


class Moving:
    """Takes steps on the host and gives logits there; captures as soon as there is a cache."""

    def __init__(self, model: DecoderModel) -> None:
        self.model = model

    @property
    def facts(self) -> ModelFacts:
        return self.model.facts

    def create_cache(self, num_slots: int) -> tuple[LayerCache, ...]:
        cache = self.model.create_cache(num_slots)
        if isinstance(self.model, GraphedDecoder):
            self.model.capture(cache, PAGE_TOKENS, max_rows=16)
        return cache

    def forward(self, step: StepInput, cache: tuple[LayerCache, ...]) -> torch.Tensor:
        plan = StepPlan(step.plan.sequences, step.plan.slots.to(DEVICE), step.plan.page_tokens)
        ids, positions, rows = (part.to(DEVICE) for part in (step.token_ids, step.positions, step.logit_rows))
        return self.model.forward(StepInput(ids, positions, rows, plan), cache).cpu()


@pytest.mark.parametrize("dtype", ALLOWED)
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_replayed_steps_equal_computed_ones(family: str, dtype: str, family_path: Callable[[str], Path]) -> None:
    path = family_path(family)
    plain = load_model(path, dtype=dtype, device=DEVICE, graphs=False)
    graphed = load_model(path, dtype=dtype, device=DEVICE)
    assert isinstance(graphed, GraphedDecoder)
    generator = torch.Generator().manual_seed(5)
    texts = [torch.randint(plain.facts.vocab_size, (length,), generator=generator) for length in (31, 17, 9, 24)]
    expected = run_paged(Moving(plain), texts, max_chunk=3)
    actual = run_paged(Moving(graphed), texts, max_chunk=3)
    assert graphed.num_replayed > 5
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours - theirs).abs().max() < ALLOWED[dtype] * (1.0 + theirs.abs().max())

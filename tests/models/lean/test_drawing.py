"""The lean decoder draws tokens itself: those that steps of its own, each behind the last one, give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kea.attention.base import Run, SequencePlan, StepPlan
from kea.kernels import draws
from kea.models import StepInput, load_model
from kea.models.base import DrawOrder
from kea.models.lean import LeanDecoder, decoder

FamilyPath = Callable[[str], Path]

PAGE = 4
ROUNDS = 23
STARTS = (5, 18, 30, 7)
TABLES = tuple(tuple(range(20 * row, 20 * row + 14)) for row in range(len(STARTS)))


def step_at(tokens: list[int], num_before: int, slots: torch.Tensor, num_pages: int = 14) -> StepInput:
    """Return the decode step of all contexts, `num_before` tokens behind their starts, with so many pages at least."""
    positions = [start + num_before for start in STARTS]
    sequences = [
        SequencePlan(row, 1, position, table[: max(num_pages, position // PAGE + 1)], (Run(0, position + 1),))
        for row, (position, table) in enumerate(zip(positions, TABLES, strict=True))
    ]
    rows = torch.arange(len(tokens))
    return StepInput(torch.tensor(tokens), torch.tensor(positions), rows, StepPlan(tuple(sequences), slots, PAGE))


def all_slots() -> torch.Tensor:
    """Return the slots of all rounds [rounds, R]."""
    places = [[start + done for start in STARTS] for done in range(ROUNDS)]
    return torch.tensor(
        [[table[p // PAGE] * PAGE + p % PAGE for p, table in zip(row, TABLES, strict=True)] for row in places]
    )


@pytest.mark.parametrize("plan", [((ROUNDS,), 14), ((1,) * ROUNDS, 0), ((1, 2, 4, 8, 1, 7), 3)])
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "granite", "olmo3"])
def test_rounds_draw_what_single_steps_draw_and_pages_may_come_late(
    family: str,
    num_threads: int,
    plan: tuple[tuple[int, ...], int],
    family_path: FamilyPath,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`plan`: the rounds of each run, and how many pages the tables have at first."""
    runs, num_pages = plan
    monkeypatch.setattr(decoder, "MIN_SHARED_WORK", 0)  # on as many threads as there are
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        model = load_model(family_path(family))
        assert isinstance(model, LeanDecoder)
        assert model.can_draw
        caches = [model.create_cache(100 * PAGE) for _ in range(2)]
        for cache in caches:
            for number, layer in enumerate(cache):
                generator = torch.Generator().manual_seed(number)
                layer.keys.copy_(torch.randn(layer.keys.shape, generator=generator))
                layer.values.copy_(torch.randn(layer.values.shape, generator=generator))
        slots = all_slots()
        tokens = [[3, 4, 5, 6]]
        gaps = []
        for done in range(ROUNDS):
            logits = model.forward(step_at(tokens[-1], done, slots[done]), caches[0])
            best = logits.topk(2).values
            gaps.append((best[:, 0] - best[:, 1]).min().item())
            tokens.append(logits.argmax(-1).tolist())
        settings = np.zeros((len(STARTS), draws.NUM_SETTINGS))
        order = DrawOrder(settings, np.zeros((len(STARTS), draws.NUM_NOISE), np.uint64))
        decoding = model.begin(step_at(tokens[0], 0, slots[0], num_pages), caches[1], order)
        drawn: list[list[int]] = []
        for num_rounds in runs:
            for row, table in enumerate(TABLES):
                held = max(num_pages, (STARTS[row] + max(0, len(drawn) - 1)) // PAGE + 1)
                for index in range(held, (STARTS[row] + len(drawn) + num_rounds - 1) // PAGE + 1):
                    assert decoding.try_extend(row, index, table[index])
            drawn += decoding.run(num_rounds).tolist()
    finally:
        torch.set_num_threads(before)
    assert min(gaps) > 1e-5, "the best two tokens are too near for an exact comparison"
    assert drawn == tokens[1:]
    for one, other in zip(*caches, strict=True):
        assert (one.keys - other.keys).abs().max() < 1e-4
        assert (one.values - other.values).abs().max() < 1e-4

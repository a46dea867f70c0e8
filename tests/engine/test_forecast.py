"""Admission by forecast: fewer preemptions in a pool that is too small, about as many in the batch, nobody left out."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kea.engine.base import Append, ContextSpec, CreateContext, Free, Generate, Generated, GenerationFailed, Snapshot
from kea.engine.batcher import Batcher
from kea.engine.config import StepLimits
from kea.engine.core import EngineCore
from kea.engine.forecast import WINDOW, Demand, OutputLengths, peak_pages
from kea.models import Tokenizer
from kea.types import GenerateOptions, Sampling, Stopping
from tools.overhead import IdleModel

VOCAB = 64
PAGE_TOKENS = 16


class EndingModel(IdleModel):
    """Every token is the last one with a probability of 1 / `mean`: lengths that nobody can foresee."""

    def __init__(self, mean: float, max_rows: int) -> None:
        super().__init__(VOCAB, max_rows)
        self.can_draw = False
        chances = torch.full((VOCAB,), (1.0 - 1.0 / mean) / (VOCAB - 1))
        chances[0] = 1.0 / mean
        self._logits = chances.log().repeat(max_rows, 1)


def _serve(tokenizer: Tokenizer, num_pages: int, mean: float, max_tokens: int) -> Snapshot:
    """Serve 150 requests with prompts of 16 to 200 tokens that are all there from the start."""
    ticks = itertools.count(1)
    limits = StepLimits(num_pages, PAGE_TOKENS, 1024, 64, 512)
    core = EngineCore(EndingModel(mean, 64), tokenizer, limits, lambda: 1e-4 * next(ticks))
    core._eos_token_ids = (0,)
    rng = random.Random(0)
    alive = set(range(150))
    for index in alive:
        core.handle(CreateContext(index, ContextSpec()))
        core.handle(Append(index, tuple(rng.randrange(1, VOCAB) for _ in range(rng.randrange(16, 200)))))
        core.handle(Generate(index, index, GenerateOptions(Stopping(max_tokens), Sampling(seed=index))))
    for _ in range(20_000):
        if not alive:
            break
        for event in core.step():
            assert not isinstance(event, GenerationFailed)
            if isinstance(event, Generated) and event.chunk.finish is not None:
                alive.discard(event.generation_id)
                core.handle(Free(event.generation_id))
        core.check()
    assert not alive, "somebody was never served"
    return core.snapshot()


@pytest.mark.parametrize(("num_pages", "mean", "max_tokens"), [(100, 60, 300), (200, 60, 64), (200, 150, 500)])
def test_few_are_preempted_and_the_batch_stays_as_large(
    stories_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, num_pages: int, mean: float, max_tokens: int
) -> None:
    found = _serve(stories_tokenizer, num_pages, mean, max_tokens)
    monkeypatch.setattr(Batcher, "_can_grow", lambda *_: True)
    eager = _serve(stories_tokenizer, num_pages, mean, max_tokens)
    assert found.generation_tokens == eager.generation_tokens
    assert eager.num_preemptions > 20
    assert found.num_preemptions < 0.6 * eager.num_preemptions
    assert found.prompt_tokens < eager.prompt_tokens
    assert found.num_steps < 1.1 * eager.num_steps


def test_a_context_that_alone_fills_the_pool_is_served(stories_tokenizer: Tokenizer) -> None:
    assert _serve(stories_tokenizer, 20, 40, 100).num_finished


# The parts


def test_an_output_is_expected_to_become_as_long_as_longer_ones_did() -> None:
    lengths = OutputLengths()
    assert lengths.expect_left(0, 101, 7) == 51, "nothing is known: half of what it may have"
    for length in (10, 20, 30, 40):
        lengths.note(length)
    expected = [lengths.expect_left(0, 1000, number) for number in range(40)]
    assert set(expected) == {10, 20, 30, 40}
    assert all(8 <= expected.count(length) <= 12 for length in (10, 20, 30, 40))
    assert {lengths.expect_left(25, 1000, number) for number in range(40)} == {5, 15}
    assert {lengths.expect_left(25, 7, number) for number in range(40)} == {5, 7}
    assert lengths.expect_left(40, 9, 0) == 5
    for _ in range(WINDOW):
        lengths.note(3)
    assert {lengths.expect_left(0, 1000, number) for number in range(40)} == {3}


DEMANDS = st.lists(
    st.builds(
        lambda tokens, left, pages, own: Demand(tokens, left, pages, min(own, pages)),
        st.integers(1, 400),
        st.integers(0, 200),
        st.integers(0, 25),
        st.integers(0, 25),
    ),
    max_size=12,
)


@given(DEMANDS)
def test_the_peak_is_that_of_going_through_every_step(demands: list[Demand]) -> None:
    peak = 0.0
    for step in range(201):
        alive = [demand for demand in demands if demand.num_left >= step]
        ended = [demand for demand in demands if demand.num_left < step]
        needed = sum((d.num_tokens + step) / PAGE_TOKENS + 0.5 - d.num_pages for d in alive)
        peak = max(peak, needed - sum(demand.num_own for demand in ended))
    assert peak_pages(demands, PAGE_TOKENS) == pytest.approx(peak)

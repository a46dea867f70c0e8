"""Single draws against a plain reference: which tokens truncation keeps, and how often each is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kea.engine.drawing import DrawRows, Noise, draw_tokens
from kea.engine.drawing_ahead import draw_ahead
from kea.engine.drawing_cpu import ONE_THREAD_NUMEL, CpuDraws
from kea.engine.penalties import RowState
from kea.types import Sampling


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of small operations: threads that wait for each other make them slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reference(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The distribution after temperature, min_p, top_k and top_p, by sorting everything. Equal tokens rank by id."""
    z = (logits - logits.max()) / np.float32(max(sampling.temperature, 2e-38))
    weights = np.exp(z.astype(np.float64))
    if sampling.min_p:
        weights[z < np.float32(math.log(sampling.min_p))] = 0.0
    order = np.argsort(-logits, kind="stable")
    if sampling.top_k:
        weights[order[sampling.top_k :]] = 0.0
    probabilities = weights / weights.sum()
    before = np.cumsum(probabilities[order]) - probabilities[order]
    if sampling.top_p < 1.0:
        probabilities[order[before >= sampling.top_p]] = 0.0
    kept: np.ndarray = probabilities / probabilities.sum()
    return kept


Draw = Callable[[DrawRows], list[int]]


def draw_by_kernels(rows: DrawRows) -> list[int]:
    """Draw as a CPU does in the engine."""
    states = []
    for sampling, noise in zip(rows.samplings, rows.noise, strict=True):
        states.append(RowState(sampling, noise.seed, rows.logits.shape[-1]))
        states[-1].num_drawn = noise.index
    return [token_id for token_id in CpuDraws().draw(rows.logits, states) if token_id is not None]


BOTH = pytest.mark.parametrize("draw", [draw_by_kernels, draw_tokens])


def draw_many(draw: Draw, logits: np.ndarray, sampling: Sampling, num_draws: int) -> np.ndarray:
    rows = torch.from_numpy(logits)[None].repeat(num_draws, 1)
    noise = [Noise(seed, seed % 3) for seed in range(num_draws)]
    drawn = draw(DrawRows(rows, rows.amax(-1), [sampling] * num_draws, noise))
    return np.bincount(drawn, minlength=len(logits)) / num_draws


CASES = [
    Sampling(),
    Sampling(temperature=0.5),
    Sampling(temperature=3.0),
    Sampling(top_k=1),
    Sampling(top_k=7),
    Sampling(top_k=100),
    Sampling(top_p=0.9),
    Sampling(top_p=0.31, temperature=2.0),
    Sampling(top_p=1e-9),
    Sampling(min_p=0.2),
    Sampling(min_p=1.0),
    Sampling(top_k=20, top_p=0.72),
    Sampling(top_k=90, top_p=0.72, min_p=0.01, temperature=1.7),
]


@BOTH
@pytest.mark.parametrize("sampling", CASES, ids=str)
@pytest.mark.parametrize("shape", ["random", "flat", "rounded"])
def test_tokens_are_drawn_as_often_as_the_reference_says(draw: Draw, sampling: Sampling, shape: str) -> None:
    logits = np.random.default_rng(3).normal(size=150).astype(np.float32) * 2
    logits = {"random": logits, "flat": np.zeros_like(logits), "rounded": np.round(logits)}[shape]
    num_draws = 3000
    expected = reference(logits, sampling)
    drawn = draw_many(draw, logits, sampling, num_draws)
    assert not drawn[expected == 0.0].any()
    deviation = np.abs(drawn - expected) / np.sqrt(np.maximum(expected * (1 - expected), 1e-9) / num_draws)
    assert deviation[expected * num_draws > 5].max(initial=0.0) < 4.5
    assert np.abs(drawn - expected).max() < 0.03


@BOTH
@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(-6, 6), min_size=1, max_size=300),
    st.builds(
        Sampling,
        temperature=st.sampled_from([0.25, 1.0, 4.0]),
        top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.1, 1e-6]),
        top_k=st.integers(0, 310),
        min_p=st.sampled_from([0.0, 0.01, 0.3]),
    ),
)
def test_only_kept_tokens_are_drawn(draw: Draw, values: list[int], sampling: Sampling) -> None:
    """Whole numbers: many equal tokens, also on the edge of what is kept and of the best 64."""
    logits = np.array(values, dtype=np.float32)
    kept = reference(logits, sampling)
    drawn = draw_many(draw, logits, sampling, 40)
    near = reference(logits, replace(sampling, top_p=min(1.0, sampling.top_p * (1 + 1e-6))))
    assert not drawn[(kept == 0.0) & (near == 0.0)].any()


@BOTH
@pytest.mark.parametrize("top_k", [1, 63, 64, 100, 1023, 1024, 2000, 2999, 3000])
def test_equal_tokens_beyond_every_width_are_kept_by_id(draw: Draw, top_k: int) -> None:
    drawn = draw_many(draw, np.zeros(3000, dtype=np.float32), Sampling(top_k=top_k), 300)
    assert not drawn[top_k:].any()
    assert np.flatnonzero(drawn).max() >= top_k * 0.9 - 1


@BOTH
@pytest.mark.parametrize("width", [1, 2, 127, 128, 129, 1000])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=0.99), Sampling(top_k=3)], ids=str)
def test_every_width_of_vocabulary_works(draw: Draw, width: int, sampling: Sampling) -> None:
    logits = np.full(width, -np.inf, dtype=np.float32)
    logits[width - 1] = 1.0
    assert draw_many(draw, logits, sampling, 20)[width - 1] == 1.0


@BOTH
@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy(draw: Draw, temperature: float) -> None:
    logits = np.array([1.0, 1.0001, -5.0, 1.0], dtype=np.float32)
    assert draw_many(draw, logits, Sampling(temperature=temperature), 50)[1] == 1.0


@BOTH
def test_weightless_tokens_at_the_end_are_never_drawn(draw: Draw) -> None:
    logits = np.full(1000, -np.inf, dtype=np.float32)
    logits[[0, 300]] = 0.0
    drawn = draw_many(draw, logits, Sampling(), 2000)
    assert set(np.flatnonzero(drawn)) == {0, 300}
    assert abs(drawn[0] - 0.5) < 0.05


def test_noise_is_uniform_and_depends_on_seed_index_and_attempt() -> None:
    by_seed = np.array([Noise(seed, 0).uniform(0) for seed in range(4000)])
    by_index = np.array([Noise(1, index).uniform(0) for index in range(4000)])
    by_attempt = np.array([Noise(1, 1).uniform(attempt) for attempt in range(4000)])
    for numbers in (by_seed, by_index, by_attempt):
        assert 0.0 <= numbers.min() < numbers.max() < 1.0
        assert np.abs(np.sort(numbers) - np.linspace(0, 1, 4000)).max() < 0.03  # Kolmogorov-Smirnov, p about 0.001
        assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.06
    assert abs(np.corrcoef(by_seed, by_index)[0, 1]) < 0.06


def test_noise_never_changes() -> None:
    """Recorded: a seed that a user noted must give the same text after an update."""
    assert Noise(42, 0).uniform(0) == 0.34329192209867343
    assert Noise(-1, 7).uniform(3) == 0.6311308942805469


@pytest.mark.parametrize("width", [200, 3000, ONE_THREAD_NUMEL // 32])
def test_kernels_draw_what_torch_draws(width: int) -> None:
    """The same noise, the same weights but for their last bits: the same tokens, on one thread and on several."""
    rng = np.random.default_rng(width)
    logits = torch.from_numpy(rng.normal(size=(40, width)).astype(np.float32) * 3)
    samplings = [CASES[row % len(CASES)] for row in range(40)]
    rows = DrawRows(logits, logits.amax(-1), samplings, [Noise(row, row % 5) for row in range(40)])
    assert draw_by_kernels(rows) == draw_tokens(rows)


@pytest.mark.parametrize("sampling", CASES)
def test_draws_that_nobody_waits_for_give_the_same_tokens(sampling: Sampling) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(200, 1500, generator=generator).mul_(2.5)
    rows = DrawRows(logits, logits.amax(-1), [sampling] * 200, [Noise(seed, seed % 5) for seed in range(200)])
    token_ids, is_settled = draw_ahead(rows)
    expected = torch.tensor(draw_tokens(rows))
    assert torch.equal(token_ids[is_settled], expected[is_settled])
    assert is_settled.sum() >= 80  # a top_p near zero rejects almost every first draw


def test_a_mixed_batch_is_drawn_row_by_row_as_it_would_be_alone() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(len(CASES), 1500, generator=generator).mul_(2.5)
    rows = DrawRows(logits, logits.amax(-1), CASES, [Noise(9, i) for i in range(len(CASES))])
    token_ids, is_settled = draw_ahead(rows)
    for row in is_settled.nonzero().flatten().tolist():
        assert draw_tokens(rows.take([row])) == [int(token_ids[row])]


def test_rows_that_are_not_numbers_end_no_draw() -> None:
    logits = torch.randn(12, 700, generator=torch.Generator().manual_seed(5))
    logits[::2] = torch.nan
    logits[1] = -torch.inf
    samplings = [Sampling(), Sampling(top_p=0.5), Sampling(top_k=5), Sampling(top_k=650)] * 3
    token_ids, _ = draw_ahead(DrawRows(logits, logits.amax(-1), samplings, [Noise(1, 0)] * 12))
    assert ((token_ids >= 0) & (token_ids < 700)).all()

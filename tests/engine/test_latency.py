"""The latency model on synthetic machines: convergence, noise, outliers, changes, and what it promises the batcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kea.engine.base import StepShape
from kea.engine.latency import NO_LIMIT, LatencyModel, add_prefill


@dataclass(frozen=True)
class Machine:
    """Its true coefficients: a 100M model on two cores."""

    base_s: float = 4e-3
    per_prefill_token_s: float = 8e-5
    per_sequence_s: float = 4e-4
    per_kv_token_s: float = 1e-6
    per_prefill_pair_s: float = 1.5e-8

    def seconds(self, shape: StepShape) -> float:
        return float(np.dot(astuple(self), (1.0, *astuple(shape)[:4])))


def mixed_load(rng: np.random.Generator) -> StepShape:
    num_sequences = int(rng.integers(1, 33))
    shape = StepShape(0, num_sequences, int(rng.integers(50, 2000)) * num_sequences)
    if rng.random() < 0.15:
        shape = add_prefill(shape, int(rng.integers(16, 1024)), int(rng.integers(0, 3000)))
    return shape


Noise = Callable[[np.random.Generator], float]


def exact(rng: np.random.Generator) -> float:
    return 1.0


def noisy(rng: np.random.Generator) -> float:
    """10 % noise, and one step in thirty is 3 to 30 times as slow."""
    slow = float(rng.uniform(3, 30)) if rng.random() < 1 / 30 else 1.0
    return float(np.exp(rng.normal() * 0.1)) * slow


def train(model: LatencyModel, machine: Machine, steps: int, noise: Noise, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        shape = mixed_load(rng)
        model.observe(shape, machine.seconds(shape) * noise(rng))


def errors(model: LatencyModel, machine: Machine) -> np.ndarray:
    rng = np.random.default_rng(99)
    shapes = [mixed_load(rng) for _ in range(300)]
    truth = np.array([machine.seconds(shape) for shape in shapes])
    predicted = np.array([model.predict(shape) for shape in shapes])
    ratios: np.ndarray = np.abs(predicted / truth - 1.0)
    return ratios


def test_it_recovers_the_coefficients_of_an_exact_machine() -> None:
    model, machine = LatencyModel(), Machine()
    train(model, machine, 300, exact)
    snapshot = model.snapshot()
    for name in Machine.__dataclass_fields__:
        assert getattr(snapshot, name) == pytest.approx(getattr(machine, name), rel=0.02)
    assert snapshot.num_samples == 300
    assert snapshot.median_error_ratio is not None
    assert snapshot.median_error_ratio < 0.01


@pytest.mark.parametrize("seed", range(5))
def test_it_converges_under_noise_and_outliers(seed: int) -> None:
    model, machine = LatencyModel(), Machine()
    train(model, machine, 100, noisy, seed)
    assert np.median(errors(model, machine)) < 0.1
    train(model, machine, 900, noisy, seed + 100)
    assert np.quantile(errors(model, machine), 0.95) < 0.1
    error = model.snapshot().median_error_ratio
    assert error is not None
    assert 0.05 < error < 0.1, "the noise itself has a median of 7 %"


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.3, 3.0, 10.0])
@pytest.mark.parametrize("seed", range(2))
def test_it_follows_a_machine_that_changes(factor: float, seed: int) -> None:
    model, machine = LatencyModel(), Machine()
    train(model, machine, 1000, noisy, seed)
    changed = Machine(*(factor * value for value in astuple(machine)))
    train(model, changed, 200, noisy, seed + 50)
    assert np.median(errors(model, changed)) < 0.1


def test_lone_outliers_hardly_move_it() -> None:
    model, machine = LatencyModel(), Machine()
    train(model, machine, 300, exact)
    shape = StepShape(0, 8, 4000)
    for factor in (100.0, 0.01):
        model.observe(shape, factor * machine.seconds(shape))
        assert model.predict(shape) == pytest.approx(machine.seconds(shape), rel=0.05)


def test_decoding_for_long_does_not_wash_out_what_prefill_costs() -> None:
    model, machine = LatencyModel(), Machine()
    train(model, machine, 300, noisy)
    rng = np.random.default_rng(5)
    for length in range(2000):
        shape = StepShape(0, 4, 4 * (200 + length))
        model.observe(shape, machine.seconds(shape) * noisy(rng))
    chunk = add_prefill(StepShape(0, 4, 4000), 512, 1000)
    assert model.predict(chunk) == pytest.approx(machine.seconds(chunk), rel=0.15)


def one_size() -> Iterator[StepShape]:
    while True:
        yield StepShape(0, 1, 100)


def growing() -> Iterator[StepShape]:
    for length in range(10**6):
        yield StepShape(0, 8, 8 * length)


@pytest.mark.parametrize("load", [one_size, growing])
def test_a_monotonous_load_is_predicted_too(load: Callable[[], Iterator[StepShape]]) -> None:
    model, machine = LatencyModel(), Machine()
    for _, shape in zip(range(300), load(), strict=False):
        model.observe(shape, machine.seconds(shape))
    assert model.predict(shape) == pytest.approx(machine.seconds(shape), rel=0.02)


@given(
    st.lists(
        st.tuples(st.integers(0, 4096), st.integers(1, 300), st.integers(1, 10**6), st.floats(1e-6, 1e3)),
        min_size=1,
        max_size=60,
    )
)
def test_coefficients_are_never_negative_whatever_is_measured(steps: list[tuple[int, int, int, float]]) -> None:
    model = LatencyModel()
    for prefill, sequences, kv_tokens, seconds in steps:
        model.observe(StepShape(prefill, sequences, kv_tokens, float(prefill * 100)), seconds)
        snapshot = model.snapshot()
        assert all(getattr(snapshot, name) >= 0.0 for name in Machine.__dataclass_fields__)
        assert np.isfinite(model.predict(StepShape(1, 1, 1)))


def test_the_error_is_of_predictions_made_before_the_measurement() -> None:
    model = LatencyModel()
    assert model.snapshot().median_error_ratio is None
    model.observe(StepShape(0, 1, 10), 0.010)
    assert model.snapshot().median_error_ratio is None, "nothing was predicted yet"
    predicted = model.predict(StepShape(0, 1, 10))
    model.observe(StepShape(0, 1, 10), 0.020)
    assert model.snapshot().median_error_ratio == pytest.approx(abs(predicted - 0.020) / 0.020)


def test_the_margin_is_how_late_most_steps_were() -> None:
    model, machine = LatencyModel(), Machine()
    assert model.margin == 1.0
    train(model, machine, 300, exact)
    assert model.margin == pytest.approx(1.0, abs=0.01)
    shape = StepShape(0, 8, 4000)
    for _ in range(10):
        model.observe(shape, 1.2 * machine.seconds(shape))
    assert 1.0 < model.margin <= 1.21
    for _ in range(40):
        model.observe(shape, 0.5 * model.predict(shape))
    assert model.margin == 1.0


def test_before_anything_is_observed_nothing_is_known() -> None:
    model = LatencyModel()
    assert model.predict(StepShape(5, 1, 5)) == 0.0
    assert model.max_prefill_tokens(StepShape(0, 1, 5), 0.1) == NO_LIMIT
    model.observe(StepShape(5, 1, 5), 0.0)
    assert model.snapshot().num_samples == 0


@pytest.fixture(scope="module")
def trained() -> LatencyModel:
    model = LatencyModel()
    train(model, Machine(), 300, exact)
    return model


@given(st.integers(0, 64), st.integers(0, 4000), st.floats(1e-3, 2.0))
def test_the_most_prefill_that_fits_fits_and_one_more_does_not(
    trained: LatencyModel, num_sequences: int, context_len: int, limit_s: float
) -> None:
    shape = StepShape(0, num_sequences, 500 * num_sequences)
    num_tokens = trained.max_prefill_tokens(shape, limit_s, context_len)
    assert trained.predict(add_prefill(shape, num_tokens + 1, context_len)) > limit_s * (1 - 1e-9)
    if num_tokens > 0:
        assert trained.predict(add_prefill(shape, num_tokens, context_len)) <= limit_s * (1 + 1e-9)


def test_prefill_of_a_chunk_counts_its_pairs() -> None:
    assert add_prefill(StepShape(0, 3, 90), 4, 10) == StepShape(4, 4, 104, 4 * 10 + 1 + 2 + 3 + 4)

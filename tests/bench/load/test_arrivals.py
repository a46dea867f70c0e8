"""Arrival processes: reproducible, ascending, of the asked mean and of a Poisson process's spread."""

from __future__ import annotations

import statistics
from itertools import pairwise
from random import Random

import pytest

from kea.bench.load.arrivals import burst_offsets, poisson_offsets, scaled_offsets
from kea.errors import InvalidRequest


def test_poisson_has_the_rate_and_the_spread_of_its_process() -> None:
    offsets = poisson_offsets(8.0, 20_001, Random(5))
    gaps = [later - earlier for earlier, later in pairwise(offsets)]
    assert offsets[0] == 0.0
    assert min(gaps) >= 0
    # 20,000 gaps: the mean is within 1/sqrt(20,000) = 0.7 % of 1/8 in two of three runs; the seed is fixed.
    assert statistics.fmean(gaps) == pytest.approx(1 / 8, rel=0.02)
    assert statistics.stdev(gaps) == pytest.approx(1 / 8, rel=0.03)


def test_poisson_is_reproducible() -> None:
    assert poisson_offsets(2.0, 50, Random(1)) == poisson_offsets(2.0, 50, Random(1))
    assert poisson_offsets(2.0, 50, Random(1)) != poisson_offsets(2.0, 50, Random(2))
    assert poisson_offsets(2.0, 1, Random(1)) == (0.0,)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_poisson_refuses(rate: float) -> None:
    with pytest.raises(InvalidRequest, match="rate"):
        poisson_offsets(rate, 5, Random(1))


def test_burst() -> None:
    assert burst_offsets(3) == (0.0, 0.0, 0.0)


def test_recorded_times_begin_at_zero_and_scale() -> None:
    assert scaled_offsets([5.0, 6.0, 9.0], 0.5) == (0.0, 0.5, 2.0)
    with pytest.raises(InvalidRequest, match="trace-time-scale"):
        scaled_offsets([0.0], 0.0)

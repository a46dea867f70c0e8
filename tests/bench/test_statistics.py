"""Statistics against values worked out by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from kea.bench.statistics import (
    Latency,
    Slo,
    Summary,
    goodput,
    meets,
    per_second,
    percentile,
    spell_slo,
    summarize,
    time_per_output_token,
)


def test_percentile_by_hand() -> None:
    values = [40.0, 10.0, 30.0, 20.0]
    assert percentile(values, 0) == 10
    assert percentile(values, 50) == 25  # rank 1.5: half way from 20 to 30
    assert percentile(values, 99) == pytest.approx(39.7)  # rank 2.97: 0.97 of the way from 30 to 40
    assert percentile(values, 100) == 40
    assert percentile([7.0], 99) == 7


def test_percentile_is_numpys() -> None:
    rng = random.Random(1)
    for count in (1, 2, 3, 10, 101):
        values = [rng.expovariate(1) for _ in range(count)]
        for q in (0, 1, 37.5, 50, 99, 100):
            assert percentile(values, q) == pytest.approx(float(np.percentile(values, q)), rel=1e-12)


@pytest.mark.parametrize(("values", "q"), [([], 50), ([1.0], -1), ([1.0], 100.5)])
def test_percentile_refuses(values: list[float], q: float) -> None:
    with pytest.raises(ValueError, match="percentile needs"):
        percentile(values, q)


def test_summary_by_hand() -> None:
    summary = summarize([1.0, 2.0, 3.0, 10.0])
    assert (summary.count, summary.mean, summary.median) == (4, 4.0, 2.5)
    assert summary.p99 == pytest.approx(9.79)  # rank 2.97: 3 + 0.97 * 7
    assert summarize([]) == Summary(0, None, None, None)


def test_time_per_output_token() -> None:
    assert time_per_output_token(0.2, 1.2, 11) == pytest.approx(0.1)
    assert time_per_output_token(0.2, 0.2, 1) is None


def test_goodput_counts_only_requests_within_every_limit() -> None:
    latencies = [
        Latency(0.1, 0.01, 1.0),  # good
        Latency(0.3, 0.01, 1.0),  # TTFT too long
        Latency(0.1, 0.05, 1.0),  # TPOT too long
        Latency(0.2, None, 0.2),  # one token: its TPOT cannot be too long; TTFT exactly at the limit
        Latency(0.1, 0.01, 3.0),  # E2E too long
    ]
    assert goodput(latencies, Slo(ttft_s=0.2, tpot_s=0.02, e2e_s=2.0), 4.0) == 0.5
    assert goodput(latencies, Slo(ttft_s=0.2), 4.0) == 1.0
    assert goodput(latencies, Slo(), 5.0) == 1.0
    assert goodput([], Slo(), 5.0) == 0.0


def test_meets_fails_on_a_latency_that_is_not_a_number() -> None:
    assert not meets(Latency(math.nan, None, 1.0), Slo(ttft_s=1.0))


def test_rates_of_a_run_without_time_are_zero() -> None:
    assert per_second(10, 4.0) == 2.5
    assert per_second(0, 0.0) == 0.0
    assert goodput([], Slo(), 0.0) == 0.0


def test_slo_in_words() -> None:
    assert spell_slo(Slo(ttft_s=0.2, e2e_s=1.5)) == "TTFT <= 200 ms, E2E <= 1500 ms"
    assert not Slo().is_given
    assert Slo(tpot_s=0.1).is_given

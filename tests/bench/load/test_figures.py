"""Counts, rates, latencies and ratios against values worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kea.bench.load.client import FailureKind, RequestFailure, RequestResult
from kea.bench.load.driver import RoundResult
from kea.bench.load.figures import count, failures, lags_ms, latencies_ms, latency_of, rates_of, try_ratio
from kea.bench.statistics import Slo


def good(index: int, ttft_s: float, itl_s: Sequence[float], cached: int | None = None) -> RequestResult:
    return RequestResult(
        index=index,
        scheduled_s=float(index),
        sent_s=index + 0.002,
        wanted_output_tokens=3,
        prompt_tokens=10,
        cached_tokens=cached,
        output_tokens=len(itl_s) + 1,
        is_usage_reported=True,
        ttft_s=ttft_s,
        itl_s=tuple(itl_s),
        e2e_s=ttft_s + sum(itl_s),
    )


def bad(index: int, kind: FailureKind = "http") -> RequestResult:
    return RequestResult(index, 0.0, 0.0, 3, output_tokens=2, ttft_s=9.0, failure=RequestFailure(kind, "why"))


ROUND = RoundResult((good(0, 0.1, [0.02, 0.04], 4), good(1, 0.3, [0.1]), bad(2), bad(3, "interrupted")), 2.0, 1)


def test_counts() -> None:
    counts = count([ROUND, ROUND])
    assert (counts.answered, counts.failed, counts.interrupted, counts.unsent, counts.asked) == (4, 2, 2, 2, 10)
    assert (counts.input_tokens, counts.output_tokens, counts.cached_tokens) == (40, 10, 8)
    assert (counts.short_answers, counts.uncounted) == (2, 0)
    assert failures([ROUND, ROUND]) == {("http", "why"): 2, ("interrupted", "why"): 2}


def test_latencies_are_of_answered_requests_only() -> None:
    latencies = latencies_ms([ROUND])
    assert latencies["ttft"] == pytest.approx((100, 300))
    assert latencies["tpot"] == pytest.approx((30, 100))
    assert latencies["itl"] == pytest.approx((20, 40, 100))
    assert latencies["e2e"] == pytest.approx((160, 400))
    assert lags_ms([ROUND]) == pytest.approx((2, 2, 0, 0))
    with pytest.raises(ValueError, match="not answered"):
        latency_of(RequestResult(5, 0.0, 0.0, 3))


def test_rates_are_over_the_time_of_all_rounds() -> None:
    rates = rates_of([ROUND, ROUND], Slo(ttft_s=0.2))
    assert rates == pytest.approx(
        {"request_throughput": 1.0, "output_throughput": 2.5, "total_throughput": 12.5, "goodput": 0.5}
    )


def test_ratios_are_above_one_where_the_subject_is_better() -> None:
    quick = RoundResult((good(0, 0.1, [0.02]),), 1.0, 0)
    slow = RoundResult((good(0, 0.4, [0.06]),), 2.0, 0)
    throughput = try_ratio("request_throughput", [quick, quick, slow], [slow, slow, slow], Slo())
    assert throughput is not None
    assert (throughput.low, throughput.median, throughput.high) == (1.0, 2.0, 2.0)
    ttft = try_ratio("ttft", [quick], [slow], Slo())
    assert ttft is not None
    assert ttft.median == pytest.approx(4.0)
    back = try_ratio("ttft", [slow], [quick], Slo())
    assert back is not None
    assert back.median == pytest.approx(0.25)


def test_no_ratio_without_both_sides() -> None:
    empty = RoundResult((bad(0),), 1.0, 0)
    whole = RoundResult((good(0, 0.1, []),), 1.0, 0)
    assert try_ratio("ttft", [whole], [empty], Slo()) is None
    assert try_ratio("goodput", [whole], [empty], Slo()) is None
    assert try_ratio("itl", [whole], [whole], Slo()) is None
    assert try_ratio("goodput", [empty], [whole], Slo()) is not None

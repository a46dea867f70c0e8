"""Statistics of latencies, as pure functions. Knows no request, no clock and no output."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """Three figures of a list of values; all None where the list is empty."""

    count: int
    mean: float | None
    median: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Slo:
    """The most a good request may take; None means that this latency is not judged."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    @property
    def is_given(self) -> bool:
        return not (self.ttft_s is None and self.tpot_s is None and self.e2e_s is None)


@dataclass(frozen=True, slots=True)
class Latency:
    """What one answered request took. `tpot_s` is None for an answer of one token: it has no second token to time."""

    ttft_s: float
    tpot_s: float | None
    e2e_s: float


def spell_slo(slo: Slo) -> str:
    """Return the limits as words: "TTFT <= 200 ms, TPOT <= 40 ms"."""
    limits = (("TTFT", slo.ttft_s), ("TPOT", slo.tpot_s), ("E2E", slo.e2e_s))
    return ", ".join(f"{name} <= {limit * 1000:.4g} ms" for name, limit in limits if limit is not None)


def percentile(values: Sequence[float], q: float) -> float:
    """Return the q-th percentile (0 to 100), linear between the two nearest ranks, as numpy's default does.

    `values` need no order. Raises ValueError for an empty list or a `q` outside 0 to 100.
    """
    if not values or not 0 <= q <= 100:
        raise ValueError(f"percentile needs values and 0 <= q <= 100, got {len(values)} values and q = {q}")
    ordered = sorted(values)
    rank = (len(ordered) - 1) * q / 100
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def summarize(values: Sequence[float]) -> Summary:
    if not values:
        return Summary(0, None, None, None)
    mean = math.fsum(values) / len(values)
    return Summary(len(values), mean, percentile(values, 50), percentile(values, 99))


def time_per_output_token(ttft_s: float, e2e_s: float, num_output_tokens: int) -> float | None:
    """Return the mean time of the tokens after the first, None where there is only one."""
    if num_output_tokens < 2:
        return None
    return (e2e_s - ttft_s) / (num_output_tokens - 1)


def meets(latency: Latency, slo: Slo) -> bool:
    """Say whether every judged latency is within its limit; a latency that does not exist cannot miss it."""
    pairs = ((latency.ttft_s, slo.ttft_s), (latency.tpot_s, slo.tpot_s), (latency.e2e_s, slo.e2e_s))
    return all(took is None or limit is None or took <= limit for took, limit in pairs)


def goodput(latencies: Iterable[Latency], slo: Slo, duration_s: float) -> float:
    """Return the requests per second that met the objective (DistServe, section 1); failed requests are not listed
    in `latencies` and so count as missed."""
    return sum(meets(latency, slo) for latency in latencies) / duration_s if duration_s > 0 else 0.0


def per_second(amount: float, duration_s: float) -> float:
    """Return a rate; 0 for a run that took no time because nothing ran."""
    return amount / duration_s if duration_s > 0 else 0.0

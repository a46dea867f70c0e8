"""What a server's results amount to: counts, rates, latencies and their ratio to another server's.

Owns the definition of every figure of `kea bench serve`. Pure; does not know how results came to be nor how they look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kea.bench.load.client import RequestResult
from kea.bench.load.driver import RoundResult
from kea.bench.statistics import Latency, Slo, goodput, per_second, percentile, time_per_output_token

RATES = ("request_throughput", "output_throughput", "total_throughput", "goodput")
LATENCIES = ("ttft", "tpot", "itl", "e2e")


@dataclass(frozen=True, slots=True)
class Counts:
    """How many requests ended how, and the tokens of those that were answered."""

    answered: int
    failed: int
    interrupted: int
    unsent: int
    input_tokens: int | None
    output_tokens: int
    cached_tokens: int | None
    short_answers: int
    uncounted: int

    @property
    def asked(self) -> int:
        return self.answered + self.failed + self.interrupted + self.unsent


def answered(results: Iterable[RequestResult]) -> Iterator[RequestResult]:
    return (result for result in results if result.failure is None)


def latency_of(result: RequestResult) -> Latency:
    """Return the latencies of an answered request."""
    if result.ttft_s is None or result.e2e_s is None:
        raise ValueError(f"request {result.index} was not answered: it has no latency")
    tpot_s = time_per_output_token(result.ttft_s, result.e2e_s, result.output_tokens)
    return Latency(result.ttft_s, tpot_s, result.e2e_s)


def count(rounds: Sequence[RoundResult]) -> Counts:
    """Count over all rounds. `uncounted` answers came without usage: their tokens are the chunks that were seen."""
    results = [result for one in rounds for result in one.results]
    good = list(answered(results))
    num_interrupted = sum(r.failure is not None and r.failure.kind == "interrupted" for r in results)
    prompts = [r.prompt_tokens for r in good if r.prompt_tokens is not None]
    cached = [r.cached_tokens for r in good if r.cached_tokens is not None]
    return Counts(
        answered=len(good),
        failed=len(results) - len(good) - num_interrupted,
        interrupted=num_interrupted,
        unsent=sum(one.num_unsent for one in rounds),
        input_tokens=sum(prompts) if prompts else None,
        output_tokens=sum(r.output_tokens for r in good),
        cached_tokens=sum(cached) if cached else None,
        short_answers=sum(r.output_tokens < r.wanted_output_tokens for r in good),
        uncounted=sum(not r.is_usage_reported for r in good),
    )


def failures(rounds: Sequence[RoundResult]) -> Counter[tuple[str, str]]:
    """Count the requests without a whole answer by kind and message, interrupted ones too."""
    found = (result.failure for one in rounds for result in one.results if result.failure)
    return Counter((failure.kind, failure.message) for failure in found)


def rates_of(rounds: Sequence[RoundResult], slo: Slo) -> dict[str, float]:
    """Return requests/s, output tokens/s, all tokens/s and requests within the objective/s over the rounds' time."""
    good = [result for one in rounds for result in answered(one.results)]
    duration_s = sum(one.duration_s for one in rounds)
    output_tokens = sum(result.output_tokens for result in good)
    input_tokens = sum(result.prompt_tokens or 0 for result in good)
    return {
        "request_throughput": per_second(len(good), duration_s),
        "output_throughput": per_second(output_tokens, duration_s),
        "total_throughput": per_second(input_tokens + output_tokens, duration_s),
        "goodput": goodput([latency_of(result) for result in good], slo, duration_s),
    }


def latencies_ms(rounds: Sequence[RoundResult]) -> dict[str, tuple[float, ...]]:
    """Return the latencies in ms of all answered requests: one TTFT, TPOT and E2E each, and every gap as ITL."""
    good = [result for one in rounds for result in answered(one.results)]
    taken = [latency_of(result) for result in good]
    return {
        "ttft": tuple(latency.ttft_s * 1000 for latency in taken),
        "tpot": tuple(latency.tpot_s * 1000 for latency in taken if latency.tpot_s is not None),
        "itl": tuple(gap * 1000 for result in good for gap in result.itl_s),
        "e2e": tuple(latency.e2e_s * 1000 for latency in taken),
    }


def lags_ms(rounds: Sequence[RoundResult]) -> tuple[float, ...]:
    """Return how late each request was sent by this client's own fault, failed ones too."""
    return tuple(result.lag_s * 1000 for one in rounds for result in one.results)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How much better the subject is than the other, over the rounds; above 1 is better for rates and latencies."""

    median: float
    low: float
    high: float


def try_ratio(figure: str, subject: Sequence[RoundResult], other: Sequence[RoundResult], slo: Slo) -> Ratio | None:
    """Compare two servers round by round in a rate or in the median of a latency; None where no round has both."""
    pairs = zip(subject, other, strict=False)
    found = [ratio for ours, theirs in pairs if (ratio := _try_ratio_of_round(figure, ours, theirs, slo)) is not None]
    return Ratio(percentile(found, 50), min(found), max(found)) if found else None


def _try_ratio_of_round(figure: str, subject: RoundResult, other: RoundResult, slo: Slo) -> float | None:
    if figure in RATES:
        better, worse = rates_of([subject], slo)[figure], rates_of([other], slo)[figure]
    else:
        ours, theirs = latencies_ms([subject])[figure], latencies_ms([other])[figure]
        if not ours or not theirs:
            return None
        better, worse = percentile(theirs, 50), percentile(ours, 50)
    return better / worse if worse > 0 else None

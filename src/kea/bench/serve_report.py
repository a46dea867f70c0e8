"""The report of `kea bench serve`: a measurement turned into samples, bounds, failures and shows.

Owns the names of what is reported there. Does not know how a report is printed or how the load was sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from itertools import chain
from pathlib import Path

import kea
from kea.bench.base import Bound, Failure, Machine, Model, Peer, Report, Sample, Scalar, Show
from kea.bench.load.driver import RoundResult
from kea.bench.load.figures import LATENCIES, RATES, count, failures, lags_ms, latencies_ms, rates_of, try_ratio
from kea.bench.machine import read_versions
from kea.bench.serving import Measurement, Served, ServeSettings
from kea.bench.statistics import percentile, spell_slo

MAX_LAG_MS = 10.0
_GOALS = {("kea", "vllm", "goodput"): 2.0}
"""The least of a comparison, by the names of both servers and the figure."""
UNITS = {
    "request_throughput": "requests/s",
    "output_throughput": "tokens/s",
    "total_throughput": "tokens/s",
    "goodput": "requests/s",
}


def build_report(
    settings: ServeSettings, measured: Measurement, machine: Machine, began: datetime, duration_s: float
) -> Report:
    """Put everything that was measured into a report; nothing that failed is left out."""
    return Report(
        command="serve",
        created_at=began.isoformat(timespec="seconds"),
        duration_s=duration_s,
        machine=machine,
        versions=read_versions(kea.__version__, ("httpx2",)),
        model=Model(measured.served[0].model),
        load=_load(settings, measured),
        peers=(*(_peer(served) for served in measured.served), *measured.lost),
        samples=tuple(chain.from_iterable(_samples(served, measured) for served in measured.served)),
        bounds=tuple(_bounds(measured)),
        failures=(
            *chain.from_iterable(_failures(served) for served in measured.served),
            *(Failure(peer.name, peer.status, peer.note, 1) for peer in measured.lost),
        ),
        shows=tuple(chain(_shows_of_servers(measured), _shows_of_ratios(measured))),
        interrupted=measured.was_interrupted,
    )


def write_requests(measured: Measurement, path: Path) -> None:
    """Write one JSON line per request sent: what was asked, what came, when, and why it failed if it did."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as lines:
        for served in measured.served:
            for round_idx, one in enumerate(served.rounds):
                for result in one.results:
                    row = {name: getattr(result, name) for name in result.__slots__ if name != "failure"}
                    failure = result.failure
                    row["failure"] = None if failure is None else {"kind": failure.kind, "message": failure.message}
                    lines.write(json.dumps({"peer": served.target.name, "round": round_idx, **row}) + "\n")


def _load(settings: ServeSettings, measured: Measurement) -> dict[str, Scalar]:
    workload, slo = settings.workload, measured.slo
    wanted = [planned for plan in measured.plans for planned in plan]
    return {
        "api": settings.shape.api,
        "arrivals": _arrivals(settings),
        "rate_per_s": workload.arrivals.rate_per_s,
        "concurrency": workload.arrivals.concurrency,
        "num_requests": len(measured.plans[0]) if measured.plans else 0,
        "num_rounds": settings.num_rounds,
        "num_warmups": settings.num_warmups,
        "seed": workload.seed,
        "input_lengths": "file" if workload.prompts else "trace" if workload.trace else str(workload.input_law),
        "output_lengths": "trace" if workload.trace else str(workload.output_law),
        "prefix_len": workload.prefix_len,
        "mean_input_len": _mean([p.input_len for p in wanted if p.input_len is not None]),
        "mean_output_len": _mean([p.output_len for p in wanted]),
        "num_cut": sum(planned.is_cut for planned in wanted),
        "trace_time_scale": workload.trace_scale.time if workload.trace else None,
        "trace_length_scale": workload.trace_scale.length if workload.trace else None,
        "prompt_lengths_are_exact": None if measured.lexicon is None else measured.lexicon.is_exact,
        "ignore_eos": settings.shape.ignore_eos,
        "temperature": settings.shape.temperature,
        "slo_ttft_ms": _ms(slo.ttft_s),
        "slo_tpot_ms": _ms(slo.tpot_s),
        "slo_e2e_ms": _ms(slo.e2e_s),
        "slo_of": settings.relative_slo.of if settings.relative_slo else None,
        "limit_s": settings.limit_s,
    }


def _arrivals(settings: ServeSettings) -> str:
    workload = settings.workload
    if workload.arrivals.concurrency is not None:
        return "concurrency"
    if workload.arrivals.rate_per_s is not None:
        return "poisson"
    return "trace" if workload.trace else "burst"


def _mean(values: list[int]) -> float | None:
    return round(sum(values) / len(values), 1) if values else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _peer(served: Served) -> Peer:
    is_measured = count(served.rounds).answered > 0
    note = f"model {served.model} at {served.target.base_url}"
    return Peer(served.target.name, "measured" if is_measured else "failed", served.version, note)


def _samples(served: Served, measured: Measurement) -> Iterator[Sample]:
    name = served.target.name
    for round_idx, one in enumerate(served.rounds):
        scenario = f"round {round_idx}"
        rates = rates_of([one], measured.slo)
        for figure in _figures_of(measured, RATES):
            yield Sample(figure, name, UNITS[figure], (rates[figure],), scenario)
        for figure, values in latencies_ms([one]).items():
            yield Sample(figure, name, "ms", values, scenario)
        yield Sample("client_lag", name, "ms", lags_ms([one]), scenario)
        yield from _token_samples(name, one, scenario)


def _token_samples(name: str, one: RoundResult, scenario: str) -> Iterator[Sample]:
    good = [result for result in one.results if result.failure is None]
    prompt_tokens = tuple(float(r.prompt_tokens) for r in good if r.prompt_tokens is not None)
    cached_tokens = tuple(float(r.cached_tokens) for r in good if r.cached_tokens is not None)
    yield Sample("prompt_tokens", name, "tokens", prompt_tokens, scenario)
    yield Sample("cached_tokens", name, "tokens", cached_tokens, scenario)
    yield Sample("output_tokens", name, "tokens", tuple(float(r.output_tokens) for r in good), scenario)


def _figures_of(measured: Measurement, figures: tuple[str, ...]) -> list[str]:
    """Leave out the goodput where there is no objective: it would only repeat the throughput."""
    return [figure for figure in figures if figure != "goodput" or measured.slo.is_given]


def _bounds(measured: Measurement) -> Iterator[Bound]:
    plans = [plan for plan in measured.plans if len(plan) > 1 and plan[-1].offset_s]
    span_s = sum(plan[-1].offset_s or 0.0 for plan in plans)
    if span_s > 0:
        offered = sum(len(plan) for plan in plans) / span_s
        yield Bound("offered_rate", offered, "requests/s", "no server can answer more than arrives in that time")


def _failures(served: Served) -> Iterator[Failure]:
    for (kind, message), number in failures(served.rounds).most_common():
        yield Failure(served.target.name, kind, message, number)
    num_unsent = count(served.rounds).unsent
    if num_unsent:
        yield Failure(served.target.name, "unsent", "the run ended before their time came", num_unsent)


def _shows_of_servers(measured: Measurement) -> Iterator[Show]:
    for served in measured.served:
        name, counts = served.target.name, count(served.rounds)
        percent = 100 * counts.answered / counts.asked if counts.asked else 0.0
        yield Show(f"{name}: requests answered", percent, "%", ">= 100", percent >= 100)
        if measured.slo.is_given and counts.asked:
            within = rates_of(served.rounds, measured.slo)["goodput"]
            yield Show(f"{name}: goodput", within, "requests/s", note=spell_slo(measured.slo))
    lags = [lag for served in measured.served for lag in lags_ms(served.rounds)]
    if lags:
        lag = percentile(lags, 99)
        note = "how late this client sent requests, p99; above, the load was not the one asked for"
        yield Show("client lag", lag, "ms", f"<= {MAX_LAG_MS:g}", lag <= MAX_LAG_MS, note)


def _shows_of_ratios(measured: Measurement) -> Iterator[Show]:
    subject, *others = measured.served
    for other in others:
        for figure in _figures_of(measured, (*RATES, *LATENCIES)):
            ratio = try_ratio(figure, subject.rounds, other.rounds, measured.slo)
            note = "above 1 the first is better; median of the rounds"
            if ratio is not None:
                note += f", from {ratio.low:.2f} to {ratio.high:.2f}"
            value = None if ratio is None else ratio.median
            goal = _GOALS.get((subject.target.name, other.target.name, figure))
            wanted, holds = (None, None) if goal is None else (f">= {goal:g}", None if value is None else value >= goal)
            name = f"{subject.target.name} against {other.target.name}: {figure}"
            yield Show(name, value, "x", wanted, holds, note)

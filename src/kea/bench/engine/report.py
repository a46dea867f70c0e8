"""The report of `kea bench engine`: a run turned into samples, bounds, failures and shows.

Owns the names of what is reported there. Does not know how a report is printed or a system asked.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from datetime import datetime

import kea
from kea.bench.base import Bound, Failure, Machine, Model, Report, Sample, Scalar
from kea.bench.engine.base import Answer
from kea.bench.engine.figures import PRODUCT, READ, Measured, refusals
from kea.bench.engine.goals import build_shows
from kea.bench.machine import read_versions

_MS_KEYS = {
    "step_s": "step_time",
    "seconds": "time",
    "cold_s": "cold_time",
    "warm_s": "warm_time",
    "plain_s": "time_without_guesses",
    "lookup_s": "time_with_guesses",
    "model_s": "model_time",
    "sampler_s": "sampler_time",
}
_REQUEST_KEYS = {"ttft_s": "ttft", "tpot_s": "tpot", "e2e_s": "e2e"}


def build_report(
    measured: Measured, load: Mapping[str, Scalar], machine: Machine, began: datetime, duration_s: float
) -> Report:
    """Put everything that was measured into a report; nothing that failed or was left out is missing from it."""
    return Report(
        command="engine",
        created_at=began.isoformat(timespec="seconds"),
        duration_s=duration_s,
        machine=machine,
        versions=read_versions(kea.__version__, ("torch", "transformers", "numba", "numpy")),
        model=Model(measured.shape.name, measured.shape.num_parameters),
        load=load,
        peers=measured.peers,
        samples=tuple(_samples(measured)),
        bounds=(*_bounds(measured), *measured.peaks),
        failures=tuple(_failures(measured)),
        shows=tuple(build_shows(measured)),
        interrupted=measured.rounds.was_interrupted,
    )


def _samples(measured: Measured) -> Iterator[Sample]:
    for (label, cell), by_round in measured.rounds.results.items():
        answers = [result for _, result in sorted(by_round.items()) if isinstance(result, Answer)]
        for key, name in _MS_KEYS.items():
            values = [value for answer in answers for value in _listed(answer.values.get(key))]
            if values:
                yield Sample(name, label, "ms", tuple(1000 * value for value in values), cell)
        for key, name in _REQUEST_KEYS.items():
            rows = [row for answer in answers for row in answer.values.get("requests", ())]
            times = tuple(1000 * row[key] for row in rows if row[key] is not None)
            if times:
                yield Sample(name, label, "ms", times, cell)
        yield from _other_samples(label, cell, answers)
    yield from _rate_samples(measured)


def _other_samples(label: str, cell: str, answers: list[Answer]) -> Iterator[Sample]:
    for key, unit in (("kv_tokens", "tokens"), ("kv_once_tokens", "tokens"), ("median_error_ratio", "ratio")):
        values = tuple(float(answer.values[key]) for answer in answers if answer.values.get(key) is not None)
        if values:
            yield Sample(key, label, unit, values, cell)


def _listed(value: object) -> list[float]:
    if value is None:
        return []
    return value if isinstance(value, list) else [float(str(value))]


def _rate_samples(measured: Measured) -> Iterator[Sample]:
    """Yield the machine's rates beside each cell, one value per round."""
    for cell, by_round in measured.rounds.bounds.items():
        for kind, unit in ((READ, "GB/s"), (PRODUCT, "GFLOP/s")):
            names = next(iter(by_round.values()))[kind]
            for name in names:
                values = tuple(rates[kind][name] / 1e9 for _, rates in sorted(by_round.items()))
                what = f"read_rate_{name}" if kind == READ else f"product_rate_{name}_rows"
                yield Sample(what, "machine", unit, values, cell)


def _bounds(measured: Measured) -> Iterator[Bound]:
    every = [rates for by_round in measured.rounds.bounds.values() for rates in by_round.values()]
    if not every:
        return
    for name in every[0][READ]:
        rate = statistics.median(rates[READ][name] for rates in every) / 1e9
        note = f"reading {measured.shape.name}'s weights at this precision once, again and again; median of the run"
        yield Bound(f"read_rate_{name}", rate, "GB/s", note)
    for name in every[0][PRODUCT]:
        rate = statistics.median(rates[PRODUCT][name] for rates in every) / 1e9
        yield Bound(f"product_rate_{name}_rows", rate, "GFLOP/s", measured.product_note)


def _failures(measured: Measured) -> Iterator[Failure]:
    for peer in measured.peers:
        if peer.status != "measured":
            yield Failure(peer.name, peer.status, peer.note, 1)
    for label, cell, refusal, count in refusals(measured):
        yield Failure(label, refusal.kind, f"{cell}: {refusal.message}", count)
    for cell, reason in measured.left_out:
        yield Failure("every system", "left out", f"{cell}: {reason}", 1)
    if measured.rounds.is_late:
        yield Failure("every system", "unmeasured", "the time limit came before the last round ended", 1)

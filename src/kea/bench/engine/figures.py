"""Figures of a run: seconds, rates, ratios and shares of the machine's bounds, one per round. Pure arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kea.bench.base import Bound, Peer
from kea.bench.engine.base import Answer, Precision, Refusal
from kea.bench.engine.cells import ALONE, Cell
from kea.bench.engine.running import Rates, Rounds
from kea.bench.engine.shapes import Shape
from kea.bench.statistics import Latency, Slo, goodput

READ, PRODUCT = "read", "product"
TTFT_FACTOR, TPOT_FACTOR = 2.0, 1.5


@dataclass(frozen=True, slots=True)
class Measured:
    """A whole run: the cells that were to be measured, those left out with the reason, and what the rounds gave."""

    shape: Shape
    cells: tuple[Cell, ...]
    left_out: tuple[tuple[str, str], ...]
    peers: tuple[Peer, ...]
    rounds: Rounds
    peaks: tuple[Bound, ...] = ()
    kv_value_bytes: float = 4.0
    """Of Kea's KV, of which the bounds are."""
    product_note: str = "a layer's products in fp32; median of the run"

    @property
    def labels(self) -> list[str]:
        return [peer.name for peer in self.peers]

    def cell(self, name: str) -> Cell | None:
        return next((cell for cell in self.cells if cell.name == name), None)


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of one figure per round, with the lowest and the highest."""

    median: float
    low: float
    high: float


def try_spread(values: Sequence[float]) -> Spread | None:
    return Spread(statistics.median(values), min(values), max(values)) if values else None


def values_of(measured: Measured, label: str, cell: str, key: str) -> dict[int, tuple[float, ...]]:
    """Return by round what a system's answers hold under a key: a number, or a list of them."""
    found: dict[int, tuple[float, ...]] = {}
    for round_idx, result in measured.rounds.results.get((label, cell), {}).items():
        value = result.values.get(key) if isinstance(result, Answer) else None
        if value is not None:
            found[round_idx] = tuple(value) if isinstance(value, list) else (float(value),)
    return found


def seconds_of(measured: Measured, label: str, cell: str) -> dict[int, float]:
    """Return by round the seconds of a step (their median) or of the whole operation."""
    for key in ("step_s", "seconds", "cold_s"):
        found = values_of(measured, label, cell, key)
        if found:
            return {round_idx: statistics.median(values) for round_idx, values in found.items()}
    return {}


def ratios(upper: Mapping[int, float], lower: Mapping[int, float]) -> list[float]:
    """Divide figures of the same rounds."""
    return [upper[round_idx] / lower[round_idx] for round_idx in sorted(upper.keys() & lower.keys())]


def speedup(measured: Measured, ours: str, theirs: str, cell: str) -> Spread | None:
    """Return how many times as fast `ours` is, round by round."""
    return try_spread(ratios(seconds_of(measured, theirs, cell), seconds_of(measured, ours, cell)))


def bound_seconds(measured: Measured, cell: Cell, precision: Precision) -> dict[int, float]:
    """Return by round the least time of a decode step or a prefill: what must be read and what must be computed."""
    return _by_round(
        measured, cell, lambda rates: max(read_s(measured, cell, precision, rates), compute_s(measured, cell, rates))
    )


def read_s(measured: Measured, cell: Cell, precision: Precision, rates: Rates) -> float:
    """Return the time to read all weights and the KV of every sequence once."""
    shape = measured.shape
    kv_bytes = (
        cell.batch * cell.context * shape.kv_token_values * measured.kv_value_bytes if cell.scenario == "decode" else 0
    )
    return (shape.weight_bytes(precision) + kv_bytes) / rates[READ][precision]


def compute_s(measured: Measured, cell: Cell, rates: Rates) -> float:
    """Return the time of all products at the rate of large ones, attention among them; a prefill needs one head."""
    shape, head = measured.shape, measured.shape.vocab_size * measured.shape.hidden
    if cell.scenario == "prefill":
        layers = shape.num_product_weights - head
        flops = 2.0 * (layers * cell.context + head) + shape.attention_flops(cell.context * (cell.context + 1) / 2)
    else:
        flops = 2.0 * shape.num_product_weights * cell.batch + shape.attention_flops(cell.batch * cell.context)
    return flops / max(rates[PRODUCT].values())


def _by_round(measured: Measured, cell: Cell, reckon: Callable[[Rates], float]) -> dict[int, float]:
    return {round_idx: reckon(rates) for round_idx, rates in measured.rounds.bounds.get(cell.name, {}).items()}


def share_of_bound(measured: Measured, label: str, cell: Cell, precision: Precision) -> Spread | None:
    """Return the bound's time over the system's, round by round: 1 is at the bound."""
    return try_spread(ratios(bound_seconds(measured, cell, precision), seconds_of(measured, label, cell.name)))


def objective(measured: Measured) -> tuple[str, Slo] | None:
    """Return multiples of what vLLM takes for one request at a time, or Kea where vLLM was not measured."""
    for name in ("vllm", "kea"):
        for label in measured.labels:
            rows = [row for found in _requests(measured, label, ALONE).values() for row in found]
            if rows and label.split(" ")[0] == name:
                tpots = [row.tpot_s for row in rows if row.tpot_s is not None]
                tpot_s = statistics.median(tpots) * TPOT_FACTOR if tpots else None
                return label, Slo(statistics.median(row.ttft_s for row in rows) * TTFT_FACTOR, tpot_s)
    return None


def goodputs(measured: Measured, label: str, cell: str, slo: Slo) -> dict[int, float]:
    """Return by round the requests per second within the objective, from the first arrival to the last end."""
    found = {}
    for round_idx, result in measured.rounds.results.get((label, cell), {}).items():
        if isinstance(result, Answer):
            end_s = max(row["offset_s"] + row["e2e_s"] for row in result.values["requests"])
            found[round_idx] = goodput(_latencies(result), slo, end_s)
    return found


def medians(measured: Measured, label: str, cell: str) -> tuple[float, float | None] | None:
    """Return the median TTFT and TPOT of all requests of all rounds, in seconds."""
    rows = [row for found in _requests(measured, label, cell).values() for row in found]
    if not rows:
        return None
    tpots = [row.tpot_s for row in rows if row.tpot_s is not None]
    return statistics.median(row.ttft_s for row in rows), statistics.median(tpots) if tpots else None


def _requests(measured: Measured, label: str, cell: str) -> dict[int, list[Latency]]:
    by_round = measured.rounds.results.get((label, cell), {})
    return {index: _latencies(result) for index, result in by_round.items() if isinstance(result, Answer)}


def _latencies(answer: Answer) -> list[Latency]:
    return [Latency(row["ttft_s"], row["tpot_s"], row["e2e_s"]) for row in answer.values["requests"]]


def refusals(measured: Measured) -> list[tuple[str, str, Refusal, int]]:
    """Return what gave nothing: system, cell, reason and in how many rounds."""
    found = []
    for (label, cell), by_round in measured.rounds.results.items():
        refused = [result for result in by_round.values() if isinstance(result, Refusal)]
        if refused:
            found.append((label, cell, refused[0], len(refused)))
    return found

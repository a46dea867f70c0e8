"""What the engine claims, each claim as one row of `shows`: its value in this run, its goal, whether it holds.

Goals are set for the 100M shape, and for a single stream of stories260k; other rows have none. A row without a value
was not measured, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kea.bench.base import Show
from kea.bench.engine.base import Precision
from kea.bench.engine.cells import ALONE, SHARED_PREFIX, Cell
from kea.bench.engine.figures import (
    PRODUCT,
    Measured,
    Spread,
    goodputs,
    objective,
    ratios,
    seconds_of,
    share_of_bound,
    speedup,
    try_spread,
    values_of,
)
from kea.bench.statistics import spell_slo

GOAL_SHAPE, SMALL_SHAPE = "100m", "stories260k"


@dataclass(frozen=True, slots=True)
class Goal:
    """The least (or with `is_most` the most) that a value is to be, of the model named `shape`."""

    value: float
    is_most: bool = False
    shape: str = GOAL_SHAPE

    def __str__(self) -> str:
        return f"{'<=' if self.is_most else '>='} {self.value:g}"

    def holds(self, value: float) -> bool:
        return value <= self.value if self.is_most else value >= self.value


def build_shows(measured: Measured) -> list[Show]:
    """Return every row that this run can speak about; one that was not measured is there if it has a goal."""
    rows = (_against_peers, _against_bounds, _arrivals, _shared, _own)
    return [show for row in rows for show in row(measured) if show.value is not None or show.goal is not None]


def _against_peers(measured: Measured) -> Iterator[Show]:
    kea, others = _split(measured)
    for ours in kea:
        for other in others:
            # A peer at another 16-bit or 8-bit precision is no rival of this one; fp32 peers load the same checkpoint.
            if other.name == "llamacpp" and other.precision != ours.precision:
                continue
            for cell in measured.cells:
                if cell.is_own or cell.scenario == "arrivals":
                    continue
                name = f"{cell.name}: {ours.label} against {other.label}"
                is_single_stream = cell.scenario == "decode" and cell.batch == 1
                is_small = measured.shape.name == SMALL_SHAPE and is_single_stream
                goal = Goal(1.0, shape=SMALL_SHAPE) if is_small else _goal(cell, ours, other)
                yield _row(measured, name, speedup(measured, ours.label, other.label, cell.name), "x", goal)


def _goal(cell: Cell, ours: _Label, other: _Label) -> Goal | None:
    """Return how many times as fast Kea is to be."""
    if cell.scenario == "prefill" and cell.context == 1024 and other.name == "openvino":
        return Goal(1.0)
    if cell.scenario != "decode":
        return None
    if other.name == "llamacpp":
        if cell.batch == 1 and cell.context < 2048:
            return Goal(1.0 if ours.precision is Precision.F32 else 1.2)
        return Goal(1.3) if cell.batch == 1 or cell.batch >= 8 else None
    least = {"openvino": 1.5, "vllm": 3.0, "transformers": 3.0}.get(other.name)
    return Goal(least) if least and cell.batch >= 8 else None


def _against_bounds(measured: Measured) -> Iterator[Show]:
    for ours in _split(measured)[0]:
        for cell in measured.cells:
            goal = None
            if cell.scenario == "decode" and cell.context == 128:
                goal = {1: Goal(0.9 if ours.precision is Precision.F32 else 0.8), 32: Goal(0.6)}.get(cell.batch)
            elif cell.scenario == "prefill" and cell.context == 1024:
                goal = Goal(0.85)
            elif cell.scenario not in ("decode", "prefill"):
                continue
            share = share_of_bound(measured, ours.label, cell, ours.precision)
            what = "bound of reading and arithmetic" if cell.scenario == "decode" else "bound of arithmetic"
            yield _row(measured, f"{cell.name}: {ours.label}, share of the {what}", share, "of the bound", goal)


def _arrivals(measured: Measured) -> Iterator[Show]:
    """Rows on requests that come in their own time, judged by multiples of one system's unloaded latencies."""
    found = objective(measured)
    if found is None:
        return
    of, slo = found
    kea, others = _split(measured)
    for cell in measured.cells:
        if cell.scenario != "arrivals" or cell.name == ALONE:
            continue
        rates = {label: goodputs(measured, label, cell.name, slo) for label in measured.labels}
        for one in (*kea, *others):
            note = f"{spell_slo(slo)}: multiples of {of} unloaded"
            spread = try_spread(list(rates[one.label].values()))
            value = None if spread is None else spread.median
            yield Show(f"{cell.name}: {one.label}, goodput", value, "requests/s", note=note)
        for ours in kea:
            for other in others:
                usable = {index: rate for index, rate in rates[other.label].items() if rate > 0}
                spread = try_spread(ratios(rates[ours.label], usable))
                yield _row(measured, f"{cell.name}: goodput, {ours.label} against {other.label}", spread, "x", None)


def _shared(measured: Measured) -> Iterator[Show]:
    """Rows on sequences under one prefix. Attention is what a step takes more than one of contexts just begun, the
    prefix's part what it takes more than one of the own tokens alone.
    """
    cells = [cell for cell in measured.cells if cell.operation == "shared"]
    for ours in _split(measured)[0]:
        for cell in cells:
            kind, _, what = cell.name.partition(": ")
            if kind == "shared":
                yield _attention_when_shared(measured, ours, cell, what)
                yield _prefix_share(measured, ours, cell, what)
            if kind in ("shared", "tree"):
                yield _kv_once(measured, ours, cell)


def _attention_when_shared(measured: Measured, ours: _Label, cell: Cell, what: str) -> Show:
    step, unshared, empty = (
        seconds_of(measured, ours.label, name) for name in (cell.name, f"unshared: {what}", f"no context: {cell.batch}")
    )
    spread = try_spread(ratios(_minus(step, empty), _minus(unshared, empty)))
    name = f"{what}: {ours.label}, attention when shared over unshared"
    return _row(measured, name, spread, "x", Goal(0.5, is_most=True))


def _prefix_share(measured: Measured, ours: _Label, cell: Cell, what: str) -> Show:
    step, bare = (seconds_of(measured, ours.label, name) for name in (cell.name, f"no prefix: {cell.batch}"))
    seconds = _minus(step, bare)
    flops = measured.shape.attention_flops(cell.batch * SHARED_PREFIX)
    bound = {
        round_idx: flops / max(rates[PRODUCT].values())
        for round_idx, rates in measured.rounds.bounds.get(cell.name, {}).items()
    }
    share = try_spread(ratios(bound, {key: value for key, value in seconds.items() if value > 0}))
    name = f"{what}: {ours.label}, prefix part, share of the arithmetic bound"
    return _row(measured, name, share, "of the bound", Goal(0.6))


def _kv_once(measured: Measured, ours: _Label, cell: Cell) -> Show:
    """Compare the pages in use with those that the same contexts need when what they share is held once."""
    held, once = (_firsts(measured, ours.label, cell.name, key) for key in ("kv_tokens", "kv_once_tokens"))
    name = f"{cell.name}: {ours.label}, KV held over KV with the prefix once"
    return _row(measured, name, try_spread(ratios(held, once)), "x", Goal(1.0, is_most=True))


def _own(measured: Measured) -> Iterator[Show]:
    for ours in _split(measured)[0]:
        for cell in measured.cells:
            if cell.scenario == "overhead":
                outside = [
                    1000 * sorted(s - m - d for s, m, d in zip(*parts, strict=True))[len(parts[0]) // 2]
                    for parts in _parts(measured, ours.label, cell.name)
                ]
                name = f"{cell.name}: {ours.label}, outside model and sampler"
                yield _row(measured, name, try_spread(outside), "ms/step", Goal(0.5, is_most=True))
            elif cell.scenario == "latency":
                errors = values_of(measured, ours.label, cell.name, "median_error_ratio").values()
                name = f"{cell.name}: {ours.label}, median error of prediction"
                spread = try_spread([100 * value[0] for value in errors])
                yield _row(measured, name, spread, "%", Goal(10.0, is_most=True))
            elif cell.scenario == "lookup":
                yield from _lookup(measured, ours, cell)
            elif cell.scenario == "cache":
                cold, warm = (_firsts(measured, ours.label, cell.name, key) for key in ("cold_s", "warm_s"))
                yield _row(
                    measured, f"{cell.name}: {ours.label}, cold over warm", try_spread(ratios(cold, warm)), "x", None
                )


def _lookup(measured: Measured, ours: _Label, cell: Cell) -> Iterator[Show]:
    """Rows on guessed tokens: what they gain, how many were right, and whether an output became another one."""
    plain, guessing = (values_of(measured, ours.label, cell.name, key) for key in ("plain_s", "lookup_s"))
    gains = try_spread(
        [one / other for key in plain for one, other in zip(plain[key], guessing[key], strict=True)] if plain else []
    )
    yield _row(measured, f"{cell.name}: {ours.label}, tokens per second with guesses over without", gains, "x", None)
    right, made = (_firsts(measured, ours.label, cell.name, key) for key in ("num_right", "num_guesses"))
    hits = try_spread(ratios(right, {key: value for key, value in made.items() if value > 0}))
    yield _row(measured, f"{cell.name}: {ours.label}, guesses that were right", hits, "of the guesses", None)
    same = try_spread(list(_firsts(measured, ours.label, cell.name, "same_ratio").values()))
    yield _row(measured, f"{cell.name}: {ours.label}, outputs as without guesses", same, "of the outputs", Goal(1.0))


def _parts(measured: Measured, label: str, cell: str) -> Iterator[tuple[tuple[float, ...], ...]]:
    found = [values_of(measured, label, cell, key) for key in ("step_s", "model_s", "sampler_s")]
    for round_idx in sorted(found[0]):
        yield tuple(one[round_idx] for one in found)


def _firsts(measured: Measured, label: str, cell: str, key: str) -> dict[int, float]:
    return {round_idx: values[0] for round_idx, values in values_of(measured, label, cell, key).items()}


def _minus(left: dict[int, float], right: dict[int, float]) -> dict[int, float]:
    return {round_idx: left[round_idx] - right[round_idx] for round_idx in left.keys() & right.keys()}


def _row(measured: Measured, name: str, spread: Spread | None, unit: str, goal: Goal | None) -> Show:
    wanted = goal if goal is not None and goal.shape == measured.shape.name else None
    if spread is None:
        return Show(name, None, unit, None if wanted is None else str(wanted), None, "not measured")
    note = f"from {spread.low:.2f} to {spread.high:.2f}" if spread.low != spread.high else ""
    holds = None if wanted is None else wanted.holds(spread.median)
    return Show(name, spread.median, unit, None if wanted is None else str(wanted), holds, note)


@dataclass(frozen=True, slots=True)
class _Label:
    label: str
    name: str
    precision: Precision


def _split(measured: Measured) -> tuple[list[_Label], list[_Label]]:
    """Return Kea's systems and the peers of this run."""
    labels = []
    for label in measured.labels:
        if label == "machine":
            continue
        name, _, precision = label.partition(" ")
        labels.append(_Label(label, name, Precision(precision)))
    return [one for one in labels if one.name == "kea"], [one for one in labels if one.name != "kea"]

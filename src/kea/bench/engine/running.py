"""The rounds of a run: every cell, by every system in turn, each first in its turn, the machine's bounds among them.

Owns the order and the time limit. Does not know how a system is made or what its answers show.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from kea.bench.engine.base import Answer, Order, Refusal, System
from kea.bench.engine.cells import Cell

T = TypeVar("T")
Results = dict[tuple[str, str], dict[int, Answer | Refusal]]
"""By system and cell, then by round."""
Rates = Mapping[str, Mapping[str, float]]
"""Of the machine: "read" by precision in bytes/s, "product" by rows of x in operations/s."""

_SLOW_START_S = 20.0  # systems that start more slowly are started anew in the first round only


class View(Protocol):
    """What watches the run."""

    def turn(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Course:
    """How the rounds run. `deadline_s` on the monotonic clock ends them; `settle_s` passes between two systems, so
    that threads of the last one no longer spin."""

    cells: Sequence[Cell]
    num_rounds: int
    cell_timeout_s: float
    deadline_s: float
    settle_s: float = 0.2
    bound_rows: tuple[int, ...] = (32, 1024)

    def num_turns(self, num_systems: int) -> int:
        return len(self.cells) * self.num_rounds * num_systems


@dataclass(slots=True)
class Rounds:
    """What the rounds gave so far; filled while they run, so that an interrupt loses nothing that was measured."""

    results: Results = field(default_factory=dict)
    bounds: dict[str, dict[int, Rates]] = field(default_factory=dict)
    was_interrupted: bool = False
    is_late: bool = False


def run_rounds(course: Course, systems: Sequence[System], machine: System | None, view: View) -> Rounds:
    """Measure until the rounds are over, the deadline has passed or Ctrl-C came; return what was measured."""
    rounds = Rounds()
    try:
        for round_idx in range(course.num_rounds):
            for number, cell in enumerate(course.cells):
                _measure_bounds(course, cell, round_idx, machine, rounds)
                for system in rotate(systems, round_idx + number):
                    if time.monotonic() >= course.deadline_s:
                        rounds.is_late = True
                        return rounds
                    view.turn(f"round {round_idx + 1} of {course.num_rounds}, {cell.name}: {system.label}")
                    result = _measure(course, cell, round_idx, system)
                    if isinstance(result, Refusal) and time.monotonic() >= course.deadline_s:
                        rounds.is_late = True  # it was cut off by the end of the run, not by a fault of its own
                        return rounds
                    if result is not None:
                        rounds.results.setdefault((system.label, cell.name), {})[round_idx] = result
                        time.sleep(course.settle_s)
                _measure_bounds(course, cell, round_idx, machine, rounds)
    except KeyboardInterrupt:
        rounds.was_interrupted = True
    return rounds


def _measure(course: Course, cell: Cell, round_idx: int, system: System) -> Answer | Refusal | None:
    """Return what a system gives for a cell; None where it is not asked."""
    timeout_s = min(course.cell_timeout_s, course.deadline_s - time.monotonic())
    if cell.is_own and not system.label.startswith("kea "):
        return None
    if cell.scenario != "start":
        return system.ask(cell.order(round_idx), timeout_s)
    if round_idx and (system.load_s or 0.0) > _SLOW_START_S:
        return None
    return system.ask_new(cell.order(round_idx), timeout_s)


def _measure_bounds(course: Course, cell: Cell, round_idx: int, machine: System | None, rounds: Rounds) -> None:
    if machine is None:
        return
    answer = machine.ask(Order("bounds", {"rows": course.bound_rows}), course.cell_timeout_s)
    if isinstance(answer, Answer):
        found = rounds.bounds.setdefault(cell.name, {})
        found[round_idx] = better(found.get(round_idx, {}), answer.values)


def better(left: Rates, right: Rates) -> Rates:
    """Return the higher of every rate: of two moments beside a cell, the one in which less else ran."""
    return {
        kind: {name: max(rate, left.get(kind, {}).get(name, rate)) for name, rate in rates.items()}
        for kind, rates in right.items()
    }


def rotate(items: Iterable[T], first: int) -> list[T]:
    """Return the items in the same circle, beginning with another one."""
    listed = list(items)
    cut = first % len(listed) if listed else 0
    return listed[cut:] + listed[:cut]

"""The course of a run: who is asked what in which order, and what an interrupt or the time limit leaves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from kea.bench.engine.base import Answer, Order, Refusal
from kea.bench.engine.cells import Cell
from kea.bench.engine.running import Course, rotate, run_rounds

Reply = Callable[[Order], Answer | Refusal]


class FakeSystem:
    """Answers from a function and remembers what it was asked."""

    def __init__(self, label: str, asked: list[tuple[str, str]], reply: Reply | None = None) -> None:
        self.label = label
        self.load_s: float | None = 1.0
        self._asked = asked
        self._reply = reply or (lambda _: Answer({"seconds": 1.0}))

    def ask(self, order: Order, timeout_s: float) -> Answer | Refusal:
        self._asked.append((self.label, order.operation))
        return self._reply(order)

    def ask_new(self, order: Order, timeout_s: float) -> Answer | Refusal:
        self._asked.append((self.label, "new " + order.operation))
        return self._reply(order)

    def close(self) -> None:
        """Nothing is open."""


class Unseen:
    def turn(self, text: str) -> None:
        """Ignore it."""


def cell(name: str, scenario: str = "decode", *, is_own: bool = False) -> Cell:
    return Cell(scenario, name, name, 1, 1, 1, lambda round_idx: {"round": round_idx}, is_own)


def course(*cells: Cell, num_rounds: int = 2, deadline_s: float = math.inf) -> Course:
    return Course(cells, num_rounds, cell_timeout_s=1.0, deadline_s=deadline_s, settle_s=0.0)


def test_every_system_goes_first_in_turn() -> None:
    asked: list[tuple[str, str]] = []
    systems = [FakeSystem(name, asked) for name in ("a", "b", "c")]
    run_rounds(course(cell("x"), num_rounds=3), systems, None, Unseen())
    assert [label for label, _ in asked] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_results_are_kept_by_round_and_failures_do_not_end_the_run() -> None:
    def reply(order: Order) -> Answer | Refusal:
        return Refusal("failed", "no") if order.arguments["round"] == 0 else Answer({"seconds": 2.0})

    rounds = run_rounds(course(cell("x")), [FakeSystem("a", [], reply)], None, Unseen())
    assert rounds.results["a", "x"] == {0: Refusal("failed", "no"), 1: Answer({"seconds": 2.0})}


def test_the_machine_is_measured_beside_every_cell() -> None:
    machine = FakeSystem("machine", [], lambda _: Answer({"read": {"f32": 1.0}, "product": {"32": 2.0}}))
    rounds = run_rounds(course(cell("x"), cell("y")), [FakeSystem("a", [])], machine, Unseen())
    assert {name: sorted(found) for name, found in rounds.bounds.items()} == {"x": [0, 1], "y": [0, 1]}


def test_of_two_moments_the_better_rate_is_the_bound() -> None:
    rates = iter([3.0, 1.0, 2.0, 5.0])
    machine = FakeSystem("machine", [], lambda _: Answer({"read": {"f32": next(rates)}}))
    rounds = run_rounds(course(cell("x")), [FakeSystem("a", [])], machine, Unseen())
    assert [found["read"]["f32"] for found in rounds.bounds["x"].values()] == [3.0, 5.0]


def test_own_cells_are_measured_on_kea_alone() -> None:
    asked: list[tuple[str, str]] = []
    systems = [FakeSystem(name, asked) for name in ("kea f32", "other f32")]
    run_rounds(course(cell("x", is_own=True), num_rounds=1), systems, None, Unseen())
    assert asked == [("kea f32", "x")]


@pytest.mark.parametrize(("load_s", "num_starts"), [(1.0, 2), (90.0, 1)])
def test_a_start_is_a_new_process_once_for_systems_that_start_slowly(load_s: float, num_starts: int) -> None:
    asked: list[tuple[str, str]] = []
    system = FakeSystem("a", asked)
    system.load_s = load_s
    run_rounds(course(cell("x", "start")), [system], None, Unseen())
    assert asked == [("a", "new x")] * num_starts


def test_an_interrupt_keeps_what_was_measured() -> None:
    def reply(order: Order) -> Answer | Refusal:
        if order.arguments["round"] == 1:
            raise KeyboardInterrupt
        return Answer({"seconds": 1.0})

    rounds = run_rounds(course(cell("x")), [FakeSystem("a", [], reply)], None, Unseen())
    assert rounds.was_interrupted
    assert rounds.results["a", "x"] == {0: Answer({"seconds": 1.0})}


def test_the_time_limit_ends_the_run_and_a_cell_cut_off_by_it_is_no_fault() -> None:
    def reply(_: Order) -> Answer | Refusal:
        time.sleep(0.06)
        return Refusal("timeout", "no answer in time")

    rounds = run_rounds(
        course(cell("x"), deadline_s=time.monotonic() + 0.05), [FakeSystem("a", [], reply)], None, Unseen()
    )
    assert rounds.is_late
    assert rounds.results == {}


def test_rotate_keeps_the_circle() -> None:
    empty: list[Any] = []
    assert rotate([1, 2, 3], 4) == [2, 3, 1]
    assert rotate(empty, 1) == []

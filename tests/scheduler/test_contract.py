"""What every scheduler keeps, whatever its rule."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kea.scheduler import EngineLoad, FifoScheduler, QueuedCall, Scheduler

SCHEDULERS: list[Callable[[], Scheduler]] = [FifoScheduler]


def call(name: str, application: int = 0, number: int = 0, priority: int = 0, tenant: str = "") -> QueuedCall:
    return QueuedCall((application, name), priority, (application, number), tenant)


def loads(*room: tuple[int, int]) -> list[EngineLoad]:
    return [EngineLoad(idx, num_calls, max_calls) for idx, (num_calls, max_calls) in enumerate(room)]


@pytest.mark.parametrize("create", SCHEDULERS)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 1), st.booleans(), st.sampled_from("ab")), max_size=40),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=4),
)
def test_nothing_is_lost_and_no_engine_is_overfilled(
    create: Callable[[], Scheduler], calls: list[tuple[int, int, bool, str]], room: list[tuple[int, int]]
) -> None:
    scheduler = create()
    expected = set()
    for idx, (application, priority, is_removed, tenant) in enumerate(calls):
        new = call(f"c{idx}", application, idx, priority, tenant)
        scheduler.add(new)
        if is_removed:
            scheduler.remove(new.key)
        else:
            expected.add(new.key)
    placements = scheduler.place(loads(*room))
    placed = [placement.key for placement in placements]
    assert len(set(placed)) == len(placed)
    assert set(placed) <= expected
    free = sum(max(0, most - held) for held, most in room)
    assert len(placed) == min(free, len(expected))
    assert len(scheduler) == len(expected) - len(placed)
    for idx, (held, most) in enumerate(room):
        assert held + sum(placement.engine_idx == idx for placement in placements) <= max(held, most)


@pytest.mark.parametrize("create", SCHEDULERS)
def test_removing_what_is_not_queued_is_no_error(create: Callable[[], Scheduler]) -> None:
    scheduler = create()
    scheduler.remove((1, "nothing"))
    scheduler.add(call("a"))
    assert [placement.key for placement in scheduler.place(loads((0, 1)))] == [(0, "a")]
    scheduler.remove((0, "a"))
    assert not len(scheduler)


@pytest.mark.parametrize("create", SCHEDULERS)
def test_a_call_may_come_back(create: Callable[[], Scheduler]) -> None:
    scheduler = create()
    for _ in range(3):
        scheduler.add(call("a"))
        scheduler.remove((0, "a"))
    scheduler.add(call("a"))
    assert len(scheduler.place(loads((0, 9)))) == 1


@pytest.mark.parametrize("create", SCHEDULERS)
def test_one_call_of_a_tenant_does_not_wait_for_the_many_of_another(create: Callable[[], Scheduler]) -> None:
    scheduler = create()
    for idx in range(20_000):
        scheduler.add(call(f"c{idx}", 1, idx, tenant="many"))
    assert len(scheduler.place(loads((0, 500)))) == 500
    scheduler.add(call("single", 2, tenant="one"))
    placed = [placement.key[1] for placement in scheduler.place(loads((498, 500)))]
    assert "single" in placed


@pytest.mark.parametrize("create", SCHEDULERS)
@pytest.mark.parametrize("num_tenants", [1, 100, 4000])
def test_a_pass_over_four_thousand_calls_is_cheap(create: Callable[[], Scheduler], num_tenants: int) -> None:
    """Measured: a few milliseconds; the bound only catches a quadratic pass."""
    scheduler = create()
    for idx in range(4000):
        scheduler.add(call(f"c{idx}", idx % 7, idx, tenant=f"t{idx % num_tenants}"))
    started = time.perf_counter()
    assert len(scheduler.place(loads(*[(0, 1000)] * 4))) == 4000
    assert time.perf_counter() - started < 1.0

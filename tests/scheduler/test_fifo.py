from __future__ import annotations

from kea.scheduler import EngineLoad, FifoScheduler, QueuedCall


def placed(scheduler: FifoScheduler, *loads: EngineLoad) -> list[tuple[str, int]]:
    return [(placement.key[1], placement.engine_idx) for placement in scheduler.place(loads)]


def test_applications_go_in_the_order_of_their_arrival() -> None:
    scheduler = FifoScheduler()
    scheduler.add(QueuedCall((2, "late"), 0, (2, 1)))
    scheduler.add(QueuedCall((1, "second"), 0, (1, 5)))
    scheduler.add(QueuedCall((1, "first"), 0, (1, 4)))
    scheduler.add(QueuedCall((3, "urgent"), -1, (3, 1)))
    assert [name for name, _ in placed(scheduler, EngineLoad(0, 0, 3))] == ["urgent", "first", "second"]
    assert placed(scheduler, EngineLoad(0, 3, 3)) == []
    assert placed(scheduler, EngineLoad(0, 2, 3)) == [("late", 0)]


def test_calls_are_balanced_over_engines() -> None:
    scheduler = FifoScheduler()
    for idx in range(16):
        scheduler.add(QueuedCall((1, f"c{idx}"), 0, (1, idx)))
    engines = [engine_idx for _, engine_idx in placed(scheduler, *(EngineLoad(idx, 0, 8) for idx in range(4)))]
    assert sorted(engines) == sorted([0, 1, 2, 3] * 4)


def test_the_emptier_engine_is_filled_first() -> None:
    scheduler = FifoScheduler()
    for idx in range(3):
        scheduler.add(QueuedCall((1, f"c{idx}"), 0, (1, idx)))
    assert [engine for _, engine in placed(scheduler, EngineLoad(0, 4, 9), EngineLoad(1, 1, 9))] == [1, 1, 1]


def test_a_doubtful_engine_is_the_last_choice() -> None:
    scheduler = FifoScheduler()
    for idx in range(3):
        scheduler.add(QueuedCall((1, f"c{idx}"), 0, (1, idx)))
    loads = EngineLoad(0, 0, 9, is_doubtful=True), EngineLoad(1, 7, 9)
    assert [engine for _, engine in placed(scheduler, *loads)] == [1, 1, 0]


def test_tenants_take_turns_whatever_they_have() -> None:
    scheduler = FifoScheduler()
    for tenant, num_calls in (("a", 6), ("b", 3), ("c", 1)):
        for idx in range(num_calls):
            scheduler.add(QueuedCall((1, f"{tenant}{idx}"), 0, (1, idx), tenant))
    order = [name for name, _ in placed(scheduler, EngineLoad(0, 0, 99))]
    assert order == ["a0", "b0", "c0", "a1", "b1", "a2", "b2", "a3", "a4", "a5"]


def test_a_pause_earns_nothing_and_costs_nothing() -> None:
    scheduler = FifoScheduler()
    for idx in range(20):
        scheduler.add(QueuedCall((1, f"a{idx}"), 0, (1, idx), "a"))
    assert len(placed(scheduler, EngineLoad(0, 0, 10))) == 10
    for idx in range(4):
        scheduler.add(QueuedCall((2, f"b{idx}"), 0, (2, idx), "b"))
    order = [name[0] for name, _ in placed(scheduler, EngineLoad(0, 0, 8))]
    assert order in (list("babababa"), list("abababab"))


def test_priority_stands_above_turns() -> None:
    scheduler = FifoScheduler()
    scheduler.add(QueuedCall((1, "other"), 0, (1, 0), "b"))
    for idx in range(3):
        scheduler.add(QueuedCall((2, f"urgent{idx}"), -1, (2, idx), "a"))
    assert [name for name, _ in placed(scheduler, EngineLoad(0, 0, 9))] == ["urgent0", "urgent1", "urgent2", "other"]


def test_removed_calls_take_no_turn_and_no_room() -> None:
    scheduler = FifoScheduler()
    for idx in range(1000):
        scheduler.add(QueuedCall((1, f"a{idx}"), 0, (1, idx), "a"))
        scheduler.add(QueuedCall((2, f"b{idx}"), 0, (2, idx), "b"))
    for idx in range(998):
        scheduler.remove((1, f"a{idx}"))
    for idx in range(1000):
        scheduler.remove((2, f"b{idx}"))
    assert len(scheduler) == 2
    assert sum(len(lane) for level in scheduler._levels.values() for lane in level._lanes.values()) < 100
    scheduler.add(QueuedCall((3, "b"), 0, (3, 0), "b"))
    assert [name for name, _ in placed(scheduler, EngineLoad(0, 0, 9))] == ["a998", "b", "a999"]

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

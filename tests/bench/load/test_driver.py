"""The driver with a sender of its own: open loop does not wait, constant concurrency does, stopping keeps results."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from kea.bench.load.client import RequestFailure, RequestResult
from kea.bench.load.driver import Driver, RoundResult, run_until
from kea.bench.load.plan import Planned
from tests.bench.waiting import until

Work = Callable[[Planned], Awaitable[None]]


class Seen:
    """Counts what the driver tells its observer."""

    def __init__(self) -> None:
        self.num_sent = self.num_ended = self.most_under_way = 0

    def sent(self, planned: Planned) -> None:
        self.num_sent += 1
        self.most_under_way = max(self.most_under_way, self.num_sent - self.num_ended)

    def ended(self, result: RequestResult) -> None:
        self.num_ended += 1


def driver(work: Work, seen: Seen, stop: asyncio.Event | None = None) -> Driver:
    async def send(planned: Planned, offset_s: float, start: float) -> RequestResult:
        sent_s = time.perf_counter() - start
        failure = None
        try:
            await work(planned)
        except asyncio.CancelledError:
            failure = RequestFailure("interrupted", "cancelled")
        return RequestResult(planned.index, offset_s, sent_s, planned.output_len, failure=failure)

    return Driver(send, time.perf_counter, stop or asyncio.Event(), seen)


def plan(*offsets: float | None) -> tuple[Planned, ...]:
    return tuple(Planned(index, offset, "prompt", 1) for index, offset in enumerate(offsets))


async def slow(planned: Planned) -> None:
    await asyncio.sleep(0.4)


async def test_open_loop_never_waits_for_answers() -> None:
    seen = Seen()
    done = await driver(slow, seen).run(plan(0.0, 0.1, 0.2))
    assert seen.most_under_way == 3
    assert [result.index for result in done.results] == [0, 1, 2]
    assert all(result.sent_s >= result.scheduled_s for result in done.results)
    assert [result.scheduled_s for result in done.results] == [0.0, 0.1, 0.2]
    assert done.duration_s >= 0.6
    assert not done.was_stopped


async def test_lag_is_the_clients_own_lateness() -> None:
    async def block(planned: Planned) -> None:
        time.sleep(0.15)  # noqa: ASYNC251 - a client that is busy with something else
        await asyncio.sleep(0)

    done = await driver(block, Seen()).run(plan(0.0, 0.05))
    assert done.results[1].lag_s >= 0.08


@pytest.mark.parametrize("concurrency", [1, 3, 50])
async def test_constant_concurrency(concurrency: int) -> None:
    async def short(planned: Planned) -> None:
        await asyncio.sleep(0.02)

    seen = Seen()
    done = await driver(short, seen).run(plan(*[None] * 9), concurrency)
    assert seen.most_under_way == min(concurrency, 9)
    assert len(done.results) == 9
    assert all(result.lag_s < 0.5 for result in done.results)


@pytest.mark.parametrize("concurrency", [None, 2])
async def test_stopping_keeps_what_finished(concurrency: int | None) -> None:
    async def first_is_quick(planned: Planned) -> None:
        await asyncio.sleep(0 if planned.index == 0 else 30)

    seen, stop = Seen(), asyncio.Event()
    running = asyncio.create_task(driver(first_is_quick, seen, stop).run(plan(0.0, 0.0, 60.0, 61.0), concurrency))
    await until(lambda: seen.num_sent == (2 if concurrency is None else 3))
    stop.set()
    done = await asyncio.wait_for(running, 10)
    assert done.results[0].failure is None
    assert {result.failure.kind for result in done.results[1:] if result.failure} == {"interrupted"}
    assert done.num_unsent == 4 - len(done.results) > 0
    assert seen.num_sent == seen.num_ended == len(done.results)
    assert done.was_stopped


async def test_a_limit_stops_a_run() -> None:
    async def endless(planned: Planned) -> None:
        await asyncio.sleep(60)

    done = await asyncio.wait_for(driver(endless, Seen()).run(plan(0.0, 90.0), limit_s=0.1), 10)
    assert len(done.results) == done.num_unsent == 1


async def test_a_bug_in_the_sender_is_not_swallowed() -> None:
    async def broken(planned: Planned) -> None:
        raise RuntimeError("ours")

    for concurrency in (None, 1):
        with pytest.raises(ExceptionGroup) as caught:
            await driver(broken, Seen()).run(plan(0.0), concurrency)
        assert caught.group_contains(RuntimeError, match="ours")


async def test_run_until() -> None:
    async def answer() -> int:
        return 42

    stop = asyncio.Event()
    assert await run_until(stop, answer()) == 42
    stop.set()
    assert await run_until(stop, asyncio.sleep(60, 1)) is None


def test_a_whole_round_was_not_stopped() -> None:
    assert not RoundResult((), 1.0, 0).was_stopped
    assert RoundResult((), 1.0, 1).was_stopped

"""Running a plan against one server: open loop (arrivals never wait for answers) or constant concurrency.

Owns the pacing and the end of a run, also an early one. Does not know HTTP: it is given a function that sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from kea.bench.load.client import RequestResult
from kea.bench.load.plan import Planned

T = TypeVar("T")


class Observer(Protocol):
    """Sees requests go and come, for progress. Called in the event loop: it must return at once."""

    def sent(self, planned: Planned) -> None: ...

    def ended(self, result: RequestResult) -> None: ...


Send = Callable[[Planned, float, float], Awaitable[RequestResult]]
"""Sends a planned request, given its scheduled offset and the clock's reading at the start; always returns a result."""


@dataclass(frozen=True, slots=True)
class RoundResult:
    """One plan run once. `duration_s` is from the start to the last end; `num_unsent` were left when it was stopped."""

    results: tuple[RequestResult, ...]
    duration_s: float
    num_unsent: int

    @property
    def was_stopped(self) -> bool:
        return self.num_unsent > 0 or any(r.failure and r.failure.kind == "interrupted" for r in self.results)


async def run_until(stop: asyncio.Event, work: Coroutine[None, None, T], limit_s: float | None = None) -> T | None:
    """Await `work`; cancel it and return None when `stop` is set or `limit_s` has passed first."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((working, stopping), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.wait((working, stopping))
    return None if working.cancelled() else working.result()


@dataclass(slots=True)
class Driver:
    """Runs plans with one way of sending; holds nothing between runs. `stop` ends a run early: nothing more is sent,
    requests under way are cancelled and reported as interrupted."""

    send: Send
    clock: Callable[[], float]
    stop: asyncio.Event
    observer: Observer

    async def run(
        self, plan: Sequence[Planned], concurrency: int | None = None, limit_s: float | None = None
    ) -> RoundResult:
        """Run a plan and return what came of every request sent.

        With `concurrency` that many are kept under way, whatever the plan's offsets. After `limit_s` the run stops.
        """
        results: list[RequestResult] = []
        start = self.clock()
        if concurrency is None:
            pacer = self._pace_open(plan, start, results)
        else:
            pacer = self._pace_closed(plan, concurrency, start, results)
        await run_until(self.stop, pacer, limit_s)
        ordered = tuple(sorted(results, key=lambda result: result.index))
        return RoundResult(ordered, self.clock() - start, len(plan) - len(results))

    async def _pace_open(self, plan: Sequence[Planned], start: float, results: list[RequestResult]) -> None:
        async with asyncio.TaskGroup() as under_way:
            for planned in plan:
                offset = planned.offset_s or 0.0
                await asyncio.sleep(max(0.0, start + offset - self.clock()))
                under_way.create_task(self._send_one(planned, offset, start, results))

    async def _pace_closed(
        self, plan: Sequence[Planned], concurrency: int, start: float, results: list[RequestResult]
    ) -> None:
        waiting = iter(plan)

        async def keep_one_under_way() -> None:
            for planned in waiting:
                result = await self._send_one(planned, self.clock() - start, start, results)
                if result.failure and result.failure.kind == "interrupted":
                    return

        async with asyncio.TaskGroup() as workers:
            for _ in range(min(concurrency, len(plan))):
                workers.create_task(keep_one_under_way())

    async def _send_one(
        self, planned: Planned, offset: float, start: float, results: list[RequestResult]
    ) -> RequestResult:
        self.observer.sent(planned)
        result = await self.send(planned, offset, start)
        results.append(result)
        self.observer.ended(result)
        return result

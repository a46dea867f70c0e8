"""Ready calls on their way to engines: asks the scheduler, runs what it places, runs again what a dead engine held.

Owns the running tasks and the books of which engine holds how many calls. Knows no prompts and no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from kea.engine.base import Engine
from kea.errors import Cancelled, EngineDied, EngineFault, KeaError
from kea.program.call import AnyCall, NativeCallSpec
from kea.program.status import CallState
from kea.scheduler import CallKey, EngineLoad, QueuedCall, Scheduler
from kea.service.config import ServiceConfig
from kea.service.execution import CallRunner
from kea.service.native import NativeRunner
from kea.service.record import CallRecord
from kea.service.session import Clock, Session

logger = logging.getLogger(__name__)


class EngineSlot:
    """One engine and the calls that it holds."""

    __slots__ = ("died_s", "engine", "idx", "max_calls", "num_calls")

    def __init__(self, idx: int, engine: Engine, max_calls: int) -> None:
        self.idx = idx
        self.engine = engine
        self.max_calls = max_calls
        self.num_calls = 0
        self.died_s: float | None = None

    def load(self, now_s: float, doubt_s: float) -> EngineLoad:
        is_doubtful = self.died_s is not None and now_s - self.died_s < doubt_s
        return EngineLoad(self.idx, self.num_calls, self.max_calls, is_doubtful)


class Dispatcher:
    """Lives as long as the service, on its event loop; `close` waits for the tasks that were stopped."""

    def __init__(
        self,
        engines: Sequence[Engine],
        scheduler: Scheduler,
        runners: tuple[CallRunner, NativeRunner],
        config: ServiceConfig,
        clock: Clock,
    ) -> None:
        self.num_retries = 0
        self._slots = [
            EngineSlot(idx, engine, config.calls_per_engine or 2 * engine.info.max_num_seqs)
            for idx, engine in enumerate(engines)
        ]
        self._scheduler = scheduler
        self._call_runner, self._native_runner = runners
        self._config = config
        self._clock = clock
        self._owners: dict[CallKey, tuple[CallRecord, Session]] = {}
        self._tasks: dict[CallKey, asyncio.Task[None]] = {}
        self._timers: dict[CallKey, asyncio.TimerHandle] = {}
        self._alive: dict[asyncio.Task[None], EngineSlot | None] = {}
        self._is_woken = False

    def check(self, call: AnyCall) -> None:
        """Raise `NotFound` for a native function that is not registered."""
        if isinstance(call, NativeCallSpec):
            self._native_runner.check(call)

    def start(self, record: CallRecord, session: Session) -> None:
        """Queue a call whose inputs are ready; a native one runs at once, on its own threads."""
        record.move(CallState.QUEUED, self._clock())
        self._owners[record.key] = record, session
        if isinstance(record.spec, NativeCallSpec):
            self._launch(record, session, None)
        else:
            self._enqueue(record)

    def stop(self, record: CallRecord) -> None:
        """Forget a call that ended from outside: its engine stops working on it at the next step."""
        if self._owners.pop(record.key, None) is None:
            return
        self._scheduler.remove(record.key)
        timer = self._timers.pop(record.key, None)
        if timer is not None:
            timer.cancel()
        task = self._tasks.pop(record.key, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def close(self) -> None:
        """Wait for the end of tasks that were stopped; sessions are closed before."""
        while self._alive:
            await asyncio.wait(self._alive)

    def check_books(self) -> None:
        """Assert that every call is in one place, and that the engines' counts are those of the tasks."""
        num_places = len(self._tasks) + len(self._timers) + len(self._scheduler)
        assert len(self._owners) == num_places, f"{len(self._owners)} calls are in {num_places} places"
        assert set(self._tasks.values()) <= set(self._alive), "a call runs in no task"
        for slot in self._slots:
            num_alive = sum(held is slot for held in self._alive.values())
            assert slot.num_calls == num_alive, f"engine {slot.idx} runs {num_alive} calls, {slot.num_calls} are booked"

    def _enqueue(self, record: CallRecord) -> None:
        self._timers.pop(record.key, None)
        self._scheduler.add(QueuedCall(record.key, record.spec.priority, record.order, record.tenant))
        self._wake()

    def _wake(self) -> None:
        """Place calls once in this turn of the loop, however many were added."""
        if not self._is_woken and len(self._scheduler):
            self._is_woken = True
            asyncio.get_running_loop().call_soon(self._place)

    def _place(self) -> None:
        self._is_woken = False
        now_s = self._clock()
        loads = [slot.load(now_s, self._config.doubt_s) for slot in self._slots]
        for placement in self._scheduler.place(loads):
            record, session = self._owners[placement.key]
            self._launch(record, session, self._slots[placement.engine_idx])

    def _launch(self, record: CallRecord, session: Session, slot: EngineSlot | None) -> None:
        record.move(CallState.RUNNING, self._clock())
        if slot is not None:
            record.engine_idx = slot.idx
            slot.num_calls += 1
        task = asyncio.get_running_loop().create_task(self._run(record, session, slot))
        self._tasks[record.key] = task
        self._alive[task] = slot
        task.add_done_callback(self._release)

    def _release(self, task: asyncio.Task[None]) -> None:
        slot = self._alive.pop(task)
        if slot is not None:
            slot.num_calls -= 1
            self._wake()

    async def _run(self, record: CallRecord, session: Session, slot: EngineSlot | None) -> None:
        try:
            await self._work(record.spec, record, session, slot)
        except asyncio.CancelledError:
            if not record.has_ended:  # cancelled by the loop's end, not by `stop`
                session.fail_call(record, Cancelled(f"call {record.spec.name!r} was cancelled with its event loop."))
            raise
        except EngineDied as error:
            self._run_again(record, session, slot, error)
        except KeaError as error:
            session.fail_call(record, error)
        except Exception as error:
            logger.exception("call %s failed by a fault of the service", record.spec.id)
            session.fail_call(record, EngineFault(f"a fault of the service: {type(error).__name__}: {error}"))
        else:
            self._leave(record)
            session.finish_call(record)

    async def _work(self, spec: AnyCall, record: CallRecord, session: Session, slot: EngineSlot | None) -> None:
        if isinstance(spec, NativeCallSpec):
            await self._native_runner.run(spec, session)
        else:
            assert slot is not None
            await self._call_runner.run(spec, record, session, slot.engine)

    def _leave(self, record: CallRecord) -> None:
        del self._owners[record.key], self._tasks[record.key]

    def _run_again(self, record: CallRecord, session: Session, slot: EngineSlot | None, error: EngineDied) -> None:
        if slot is not None:
            slot.died_s = self._clock()
        if slot is None or record.num_attempts >= self._config.max_attempts:
            session.fail_call(record, error)
            return
        self.num_retries += 1
        logger.info("call %s runs again (attempt %d): %s", record.spec.id, record.num_attempts + 1, error)
        record.move(CallState.QUEUED, self._clock())
        del self._tasks[record.key]
        delay_s = self._config.retry_delay_s * 2 ** (record.num_attempts - 1)
        loop = asyncio.get_running_loop()
        self._timers[record.key] = loop.call_later(delay_s, self._enqueue, record)

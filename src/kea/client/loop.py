"""The event loop of a connection, on a thread of its own. Everything asynchronous of the client runs there.

Callers are synchronous (they wait for the result) or on another event loop (they await it): one core, two doors.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from kea.errors import Cancelled

T = TypeVar("T")


class LoopThread:
    """A thread that runs an event loop from creation until `stop`. Whatever was begun by then gets an answer."""

    def __init__(self, name: str = "kea-client") -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.RLock()  # reentrant: a collected stream may begin its end at any moment
        self._begun: set[Future[Any]] = set()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    @property
    def is_stopped(self) -> bool:
        """Tell whether nothing can be begun any more."""
        return self._is_stopped

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for its result; an interrupt of the caller cancels it."""
        assert threading.current_thread() is not self._thread, "the loop's thread would wait for itself"
        return result_of(self.begin(work))

    async def arun(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and await its result on the caller's loop; cancelling the caller cancels it."""
        return await await_result(self.begin(work))

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop; return its future, which may be waited for or cancelled."""
        with self._lock:
            if not self._is_stopped:
                future = asyncio.run_coroutine_threadsafe(work, self._loop)
                self._begun.add(future)
                future.add_done_callback(self._begun.discard)
                return future
        work.close()
        raise _ended()

    def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what ends something, and wait for it, except where that is impossible: the loop stops, or is the caller.

        A stream that was left open is collected on any thread, this one too.
        """
        with suppress(Cancelled):
            future = self.begin(work)
            if threading.current_thread() is not self._thread:
                result_of(future)

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call on the loop's thread, soon."""
        self._loop.call_soon_threadsafe(callback)

    def stop(self) -> None:
        """Cancel what still runs on the loop, close it and join the thread. May be called twice."""
        with self._lock:
            if not self._is_stopped:
                self._is_stopped = True
                self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.get_loop().run_forever()
        for future in tuple(self._begun):  # begun so late that the loop never came to them
            future.cancel()


def result_of(future: Future[T]) -> T:
    """Wait for what was begun; an interrupt of the caller cancels it. Raises `Cancelled` when the loop was stopped."""
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        raise _ended() from None
    except BaseException:
        future.cancel()
        raise


async def await_result(future: Future[T]) -> T:
    """Await `result_of`. The end of the connection is no cancellation of the caller's task."""
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise _ended() from None


def _ended() -> Cancelled:
    return Cancelled("the session was closed.", hint="Read variables before it closes.")

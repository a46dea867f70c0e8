"""The event loop of a connection, on a thread of its own. Everything asynchronous of the client runs there.

Callers are synchronous (they wait for the result) or on another event loop (they await it): one core, two doors.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from kea.errors import Cancelled

T = TypeVar("T")


class LoopThread:
    """A thread that runs an event loop from creation until `stop`."""

    def __init__(self, name: str = "kea-client") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    @property
    def is_stopped(self) -> bool:
        return self._loop.is_closed()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for its result; an interrupt of the caller cancels it."""
        assert threading.current_thread() is not self._thread, "the loop's thread would wait for itself"
        future = self.begin(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def arun(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and await its result on the caller's loop; cancelling the caller cancels it."""
        return await asyncio.wrap_future(self.begin(work))

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop; return its future, which may be waited for or cancelled."""
        if self.is_stopped:
            work.close()
            raise Cancelled("the session was closed.", hint="Read variables before it closes.")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call on the loop's thread, soon."""
        self._loop.call_soon_threadsafe(callback)

    def stop(self) -> None:
        """Cancel what still runs on the loop, close it and join the thread. May be called twice."""
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.get_loop().run_forever()

"""Work that nobody may wait for: loading runs for seconds in imports and compilers, which cannot be interrupted.

A thread with such work is left behind instead. The ordinary end of a process waits for it, since native code must not
run while the interpreter goes; a command that wants to end at once asks `is_any_alive`. Knows no engines.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
_ABANDONED: list[threading.Thread] = []


def abandon(thread: threading.Thread) -> None:
    """Leave a daemon thread behind; the end of the process joins it."""
    _ABANDONED.append(thread)
    atexit.register(thread.join)


def is_any_alive() -> bool:
    """Whether a thread that was left behind still runs."""
    return any(thread.is_alive() for thread in _ABANDONED)


async def call_on_thread(function: Callable[[], T]) -> T:
    """Await a call on a thread of its own. A cancellation leaves that thread behind and returns at once."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # T may itself be None

    def call() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:  # noqa: BLE001 - it is raised where the call is awaited
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            logger.debug("the event loop is closed; nobody asks for the result of %r", function)

    thread = threading.Thread(target=call, name="kea-loading", daemon=True)
    thread.start()
    try:
        return await future
    except asyncio.CancelledError:
        abandon(thread)
        raise

"""Functions that the operator registered: Python callables by name, run on threads. Knows no engine.

A function receives the call's inputs as keyword arguments (texts of variables as strings) and returns a string, or for
several outputs a mapping from their names to strings. Its time counts from its start, not from its place in the queue.
A thread cannot be stopped: at a timeout, or when its call is cancelled, a function is left alone and its place goes to
the next; where `MAX_LEFT_ALONE` of them still run, further calls are refused. Threads are daemons, so that a function
that never returns does not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from kea.errors import CallFailed, DeadlineExceeded, KeaError, LimitExceeded, NotFound
from kea.program.call import NativeCallSpec, VariableRef
from kea.program.fields import check_unicode
from kea.service.session import Session

logger = logging.getLogger(__name__)

MAX_LEFT_ALONE = 64

NativeFunction = Callable[..., str | Mapping[str, str]]


class NativeRunner:
    """Runs native calls, `num_threads` at once and each within `timeout_s`."""

    def __init__(self, functions: Mapping[str, NativeFunction], num_threads: int, timeout_s: float) -> None:
        self._functions = functions
        self._places = asyncio.Semaphore(num_threads)
        self._num_left_alone = 0
        self._timeout_s = timeout_s

    def check(self, call: NativeCallSpec) -> None:
        """Raise `NotFound` for a function that is not registered."""
        if call.function not in self._functions:
            known = ", ".join(sorted(self._functions)) or "none"
            raise NotFound(
                f"there is no native function {call.function[:80]!r} here; registered are: {known}.", param="function"
            )

    async def run(self, call: NativeCallSpec, session: Session) -> None:
        """Run the function and set the call's outputs."""
        arguments = {item.name: _value(item.value, session) for item in call.inputs}
        work = partial(self._functions[call.function], **arguments)
        async with self._places:
            self._check_left_alone()
            try:
                async with asyncio.timeout(self._timeout_s):
                    result = await self._call(work)
            except TimeoutError:
                raise DeadlineExceeded(
                    f"the native function {call.function!r} did not return within {self._timeout_s:g} s."
                ) from None
        if isinstance(result, KeaError):
            raise result
        if isinstance(result, BaseException):
            logger.warning("native function %s failed", call.function, exc_info=result)
            message = f"the native function {call.function!r} raised {type(result).__name__}: {result}"
            raise CallFailed(message) from result
        _set_outputs(call, result, session)

    def _check_left_alone(self) -> None:
        if self._num_left_alone >= MAX_LEFT_ALONE:
            raise LimitExceeded(
                f"{self._num_left_alone} native functions still run though their time is over or their calls were "
                f"cancelled; at most {MAX_LEFT_ALONE} may.",
                hint="Try again later.",
            )

    async def _call(self, work: Callable[[], object]) -> object:
        """Return what `work` returns or raises, from a thread of its own."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        thread = threading.Thread(target=self._main, args=(work, loop, future), name="kea-native", daemon=True)
        thread.start()
        try:
            return await future
        except asyncio.CancelledError:
            self._num_left_alone += 1
            raise

    def _main(
        self, work: Callable[[], object], loop: asyncio.AbstractEventLoop, future: asyncio.Future[object]
    ) -> None:
        result: object
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - whatever it raises, SystemExit too, fails this call alone
            result = error
        try:
            loop.call_soon_threadsafe(self._finish, future, result)
        except RuntimeError:
            logger.warning("a native function returned after its service had ended")

    def _finish(self, future: asyncio.Future[object], result: object) -> None:
        if future.cancelled():
            self._num_left_alone -= 1
        else:
            future.set_result(result)


def _value(value: Any, session: Session) -> Any:
    return session.value_of(value.variable_id) if isinstance(value, VariableRef) else value


def _set_outputs(call: NativeCallSpec, result: object, session: Session) -> None:
    if isinstance(result, str) and len(call.outputs) == 1:
        result = {call.outputs[0].name: result}
    names = {output.name for output in call.outputs}
    if (
        not isinstance(result, Mapping)
        or set(result) != names
        or not all(isinstance(item, str) for item in result.values())
    ):
        raise CallFailed(
            f"the native function {call.function!r} returned {type(result).__name__}; it must return a string for a "
            f"single output, or a mapping with a string for each of: {', '.join(sorted(names))}."
        )
    for output in call.outputs:
        check_unicode(result[output.name], f"what the native function {call.function!r} returned")
    for output in call.outputs:
        session.write_output(output.variable_id, result[output.name])
        session.finish_output(output.variable_id)

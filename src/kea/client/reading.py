"""Reads of a session that begin together, in one request. Knows no HTTP; runs on the connection's loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from kea.errors import Cancelled, KeaError, Unreachable
from kea.types import Criteria

Answer = str | KeaError
ReadEach = Callable[[Sequence[str], Criteria | None], AsyncGenerator[tuple[str, Answer]]]
"""Yields each variable's id with its value or its error, in the order in which they are done."""


class SharedReads:
    """Lives as long as its session's channel. A request ends with its last answer, or when its last reader goes."""

    def __init__(self, read_each: ReadEach, linger_s: float) -> None:
        self._read_each = read_each
        self._linger_s = linger_s
        self._gathering: dict[Criteria | None, _Request] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, variable_id: str, criteria: Criteria | None) -> str:
        """Return the variable's value once it is there. Raises its error, or that of the request."""
        request = self._gathering.get(criteria)
        if request is None:
            request = self._gathering[criteria] = _Request()
            task = asyncio.get_running_loop().create_task(self._run(request, criteria))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            request.task = task
        try:
            answer = await request.wait(variable_id)
        finally:
            if request.is_forsaken:
                self._give_up(request, criteria)
        if isinstance(answer, KeaError):
            raise answer.with_traceback(None)
        return answer

    async def _run(self, request: _Request, criteria: Criteria | None) -> None:
        error: KeaError = Unreachable("the answer ended before all variables were there.", hint="Read them again.")
        try:
            await asyncio.sleep(self._linger_s)
            self._close(request, criteria)
            async with aclosing(self._read_each(list(request.answers), criteria)) as answers:
                async for variable_id, answer in answers:
                    request.answer(variable_id, answer)
        except KeaError as found:
            error = found
        except asyncio.CancelledError:
            self._close(request, criteria)
            error = Cancelled("the session was closed.", hint="Read variables before it closes.")
            raise
        finally:
            request.end(error)

    def _close(self, request: _Request, criteria: Criteria | None) -> None:
        """Let nobody join the request any more."""
        if self._gathering.get(criteria) is request:
            del self._gathering[criteria]

    def _give_up(self, request: _Request, criteria: Criteria | None) -> None:
        self._close(request, criteria)
        if request.task is not None:
            request.task.cancel()


class _Request:
    """What is read together: a future per variable, and how many wait for any of them."""

    def __init__(self) -> None:
        self.answers: dict[str, asyncio.Future[Answer]] = {}
        self.task: asyncio.Task[None] | None = None
        self._num_waiting = 0
        self._num_open = 0

    @property
    def is_forsaken(self) -> bool:
        """Tell whether answers are missing for which nobody waits."""
        return self._num_open > 0 and not self._num_waiting

    async def wait(self, variable_id: str) -> Answer:
        if variable_id not in self.answers:
            self.answers[variable_id] = asyncio.get_running_loop().create_future()
            self._num_open += 1
        self._num_waiting += 1
        try:
            return await asyncio.shield(self.answers[variable_id])
        finally:
            self._num_waiting -= 1

    def answer(self, variable_id: str, answer: Answer) -> None:
        future = self.answers.get(variable_id)
        if future is not None and not future.done():
            self._num_open -= 1
            future.set_result(answer)

    def end(self, error: KeaError) -> None:
        """Answer what is still open with an error."""
        for variable_id in self.answers:
            self.answer(variable_id, error)

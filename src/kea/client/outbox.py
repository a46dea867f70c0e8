"""Calls on their way to the service: what is submitted at about the same time goes in one request, in order.

Owns the calls that are not sent yet, and the errors of those that were refused. `add` may be called on any thread and
returns at once; everything else runs on the connection's loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from kea.client.loop import LoopThread
from kea.client.transport import Channel
from kea.errors import CallFailed, Cancelled, Conflict, InvalidRequest, KeaError, LimitExceeded, NotFound
from kea.program.call import AnyCall, Program, VariableSpec

logger = logging.getLogger(__name__)

_Part = tuple[Sequence[VariableSpec], Sequence[AnyCall]]


@dataclass(eq=False, slots=True)
class Batch:
    """What goes in one request. `sent` is set when the service accepted or refused it."""

    calls: list[AnyCall] = field(default_factory=list)
    variables: list[VariableSpec] = field(default_factory=list)
    sent: asyncio.Event = field(default_factory=asyncio.Event)


class Outbox:
    """One per open session. At most one request is under way, so that calls arrive in their order."""

    def __init__(self, loop: LoopThread, channel: Channel, linger_s: float) -> None:
        self._loop = loop
        self._channel = channel
        self._linger_s = linger_s
        self._lock = threading.Lock()
        self._batch: Batch | None = None
        self._last: Batch | None = None
        self._sender: asyncio.Task[None] | None = None
        self._is_sending = False
        self._closed_by: KeaError | None = None
        self._refused: dict[str, KeaError] = {}

    def add(self, calls: Sequence[AnyCall] = (), variables: Sequence[VariableSpec] = ()) -> Batch:
        """Take calls and declared variables, to be sent soon. Raises when the session is closed."""
        with self._lock:
            if self._closed_by is not None:
                raise self._closed_by.with_traceback(None)
            if self._batch is None:
                self._batch = self._last = Batch()
            batch = self._batch
            batch.calls += calls
            batch.variables += variables
            must_start, self._is_sending = not self._is_sending, True
        if must_start:
            self._loop.call_soon(self._start)
        return batch

    async def settle(self) -> None:
        """Wait until everything that was added is accepted or refused."""
        if self._last is not None:
            await self._last.sent.wait()

    async def check(self, batch: Batch, variable_id: str) -> None:
        """Wait until the batch was sent. Raises the error with which the variable's call was refused."""
        if not batch.sent.is_set():
            await batch.sent.wait()
        error = self._refused.get(variable_id)
        if error is not None:
            raise error.with_traceback(None)

    async def close(self) -> None:
        """Refuse what is not sent yet, and whatever is added from now on."""
        with self._lock:
            self._closed_by = Cancelled("the session was closed.", hint="Read variables before it closes.")
            batch, self._batch = self._batch, None
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait([self._sender])
        if batch is not None:
            self._refuse(batch.calls, batch.variables, self._closed_by)
            batch.sent.set()

    def _start(self) -> None:
        self._sender = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> None:
        await asyncio.sleep(self._linger_s)
        while (batch := self._take()) is not None:
            try:
                await self._submit(batch)
            finally:
                batch.sent.set()

    async def _submit(self, batch: Batch) -> None:
        """Submit a batch; where it is refused, its halves: what is right is not refused for what stood beside it."""
        work: list[_Part] = [(batch.variables, batch.calls)]
        while work:
            variables, calls = work[-1][0], self._sendable(work[-1][1])
            error = await self._refusal_of(Program(tuple(calls), tuple(variables)), work)
            del work[-1]
            halves = _halves(variables, calls) if error is not None and _is_of_one(error) else []
            work += halves
            if error is None or halves:
                continue
            self._refuse(calls, variables, error)
            if not _is_of_one(error) or _is_full(error):
                self._refuse_all(work, error)
                return

    async def _refusal_of(self, program: Program, work: Sequence[_Part]) -> KeaError | None:
        """Submit a program; return what it was refused with. When cancelled, refuse all that is left."""
        if not program.calls and not program.variables:
            return None
        try:
            await self._channel.submit(program)
        except asyncio.CancelledError:
            self._refuse_all(work, Cancelled("the session was closed."))
            raise
        except KeaError as error:
            return error
        except Exception as error:
            logger.exception("a program could not be submitted")
            refusal = CallFailed(f"the call could not be submitted: {type(error).__name__}: {error}")
            refusal.__cause__ = error
            return refusal
        return None

    def _take(self) -> Batch | None:
        with self._lock:
            batch, self._batch = self._batch, None
            self._is_sending = batch is not None
            return batch

    def _sendable(self, calls: Sequence[AnyCall]) -> list[AnyCall]:
        """Return the calls without those that read a refused variable, which are refused as well."""
        if not self._refused:
            return list(calls)
        sendable = []
        for call in calls:
            cause = next((self._refused[item] for item in call.reads if item in self._refused), None)
            if cause is None:
                sendable.append(call)
                continue
            root = cause.__cause__ or cause
            error = CallFailed(f"call {call.name!r} was not submitted: an input was refused: {root}")
            error.__cause__ = root
            self._refuse([call], [], error)
        return sendable

    def _refuse_all(self, parts: Sequence[_Part], error: KeaError) -> None:
        for variables, calls in parts:
            self._refuse(calls, variables, error)

    def _refuse(self, calls: Sequence[AnyCall], variables: Sequence[VariableSpec], error: KeaError) -> None:
        for call in calls:
            self._refused.update(dict.fromkeys(call.writes, error))
        self._refused.update(dict.fromkeys((variable.id for variable in variables), error))


def _is_of_one(error: KeaError) -> bool:
    """Tell whether an error may be the fault of one call or variable, and not of the session, the key or the server."""
    if isinstance(error, NotFound | LimitExceeded):
        return error.param not in (None, "session_id")
    return isinstance(error, InvalidRequest | Conflict | CallFailed)


def _is_full(error: KeaError) -> bool:
    """Tell whether there was no room for one thing, and so there is none for those behind it."""
    return isinstance(error, LimitExceeded) and error.retryable


def _halves(variables: Sequence[VariableSpec], calls: Sequence[AnyCall]) -> list[_Part]:
    """Return what was refused together as two parts, the one to be sent first at the end; one thing has no halves."""
    if variables and calls:
        return [([], calls), (variables, [])]
    middle, both = max(len(variables), len(calls)) // 2, (variables, calls)
    if not middle:
        return []
    return [(both[0][middle:], both[1][middle:]), (both[0][:middle], both[1][:middle])]

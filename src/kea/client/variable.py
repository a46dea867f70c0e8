"""A semantic variable as an author holds it: a name for text that may not be written yet. Knows no transport."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING

from kea.client.pieces import Pieces
from kea.errors import Cancelled, DeadlineExceeded, InvalidRequest, KeaError, check_range
from kea.program.fields import check_unicode
from kea.types import Criteria

if TYPE_CHECKING:
    from kea.client.outbox import Batch
    from kea.client.session import Session
    from kea.program.call import AnyCall

ANSWER_S = 2.0
"""What a service may take to say that a deadline passed."""


class Variable:
    """Made by calling a function or by `Session.variable`; readable as long as its session is open.

    Submitting is separate from reading: pass it to other functions before its value is there. Every operation has a
    form that waits and one to be awaited (`get` and `aget`). A value that was read once stays readable.
    `name` is that of its output, `call_id` that of the call that writes it (None: no call does), `session` its session.
    """

    __slots__ = ("_batch", "_call_name", "_state", "_value", "call_id", "id", "name", "session")

    def __init__(
        self, session: Session, variable_id: str, name: str, batch: Batch, call: AnyCall | None = None
    ) -> None:
        self.session = session
        self.id = variable_id
        self.name = name
        self.call_id = None if call is None else call.id
        self._call_name = None if call is None else call.name
        self._batch = batch
        self._value: str | None = None
        self._state = "declared" if call is None else "submitted"

    def get(self, criteria: Criteria | None = None, deadline_s: float | None = None) -> str:
        """Return the value once it is there.

        Raises what prevented it (`CallFailed` with its cause, `Cancelled`), or `DeadlineExceeded` when `deadline_s`
        seconds passed; the call goes on then.
        """
        if self._value is None:
            return self.session.loop.run(self.read(criteria, deadline_s))
        return self._value

    async def aget(self, criteria: Criteria | None = None, deadline_s: float | None = None) -> str:
        """Await `get`."""
        if self._value is None:
            return await self.session.loop.arun(self.read(criteria, deadline_s))
        return self._value

    def stream(self, criteria: Criteria | None = None) -> Iterator[str]:
        """Yield the text from the beginning as it is written. Raises like `get`, behind what was written."""
        loop, pieces = self.session.loop, self.pieces(criteria)
        try:
            while (piece := loop.run(pieces.next())) is not None:
                yield piece
        finally:
            loop.finish(pieces.close())

    async def astream(self, criteria: Criteria | None = None) -> AsyncIterator[str]:
        """Yield as `stream` does."""
        loop, pieces = self.session.loop, self.pieces(criteria)
        try:
            while (piece := await loop.arun(pieces.next())) is not None:
                yield piece
        finally:
            with suppress(Cancelled):  # the connection ended before
                await loop.arun(pieces.close())

    def set(self, value: str) -> None:
        """Set the value of a variable that no call writes, once. Raises `Conflict`."""
        self.session.loop.run(self.write(value))

    async def aset(self, value: str) -> None:
        """Await `set`."""
        await self.session.loop.arun(self.write(value))

    def cancel(self) -> None:
        """Cancel the call that writes the variable, if it still runs. What reads it fails with that cause."""
        self.session.cancel([self])

    async def acancel(self) -> None:
        """Await `cancel`."""
        await self.session.acancel([self])

    def become_output(self, call: AnyCall, batch: Batch) -> None:
        """Let a call write this variable, which was declared before."""
        self.call_id, self._call_name, self._batch = call.id, call.name, batch
        self._state = "submitted"

    def begin_read(self, criteria: Criteria | None, deadline_s: float | None) -> Future[str]:
        """Start `get` on the connection's loop; return its future."""
        return self.session.loop.begin(self.read(criteria, deadline_s))

    async def read(self, criteria: Criteria | None, deadline_s: float | None) -> str:
        """Return the value; runs on the connection's loop. A service that does not answer cannot outlast a deadline."""
        if self._value is not None:
            return self._value
        _check_criteria(criteria)
        if deadline_s is not None:
            check_range("deadline_s", deadline_s, 0.0)
        if deadline_s is None or math.isinf(deadline_s):
            return await self._read(criteria, None)
        try:
            async with asyncio.timeout(deadline_s + ANSWER_S):
                return await self._read(criteria, deadline_s)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the service gave no answer about variable {self.name or self.id!r} when its deadline of "
                f"{deadline_s:g} s had passed.",
                hint="Does it still run?",
                param="deadline_s",
            ) from None

    def pieces(self, criteria: Criteria | None) -> Pieces:
        """Return the variable's pieces for one reader; they are read on the connection's loop."""
        _check_criteria(criteria)
        return Pieces(self.session, self._batch, self.id, criteria)

    async def write(self, value: str) -> None:
        """Set the value; runs on the connection's loop."""
        if not isinstance(value, str):
            raise InvalidRequest(f"a variable's value is a string, not {type(value).__name__}.", param="value")
        check_unicode(value, "value")
        channel = await self.session.reach(self._batch, self.id)
        await channel.set(self.id, value)

    async def _read(self, criteria: Criteria | None, deadline_s: float | None) -> str:
        try:
            channel = await self.session.reach(self._batch, self.id)
            self._value = await channel.get(self.id, criteria, deadline_s)
        except KeaError as error:
            if not (error.retryable or isinstance(error, DeadlineExceeded)):
                self._state = error.code
            raise
        self._state = "ready"
        return self._value

    def __repr__(self) -> str:
        """Tell the name, the call that writes it, and what was seen of it: this asks no server."""
        origin = "" if self._call_name is None else f" of {self._call_name}"
        return f"<kea.Variable {self.name or self.id}{origin}, {self._state}>"

    def __format__(self, spec: str) -> str:
        """Refuse: inside an f-string the text of a variable is not there yet."""
        raise InvalidRequest(
            f"variable {self.name or self.id!r} cannot be formatted into a string: its text may not be written yet.",
            hint="Pass it to a function as it is, or format the value that get() returns.",
        )


def _check_criteria(criteria: object) -> None:
    if criteria is not None and not isinstance(criteria, Criteria):
        allowed = ", ".join(f"kea.{item.name}" for item in Criteria)
        raise InvalidRequest(f"criteria is {criteria!r}; it must be one of {allowed}.", param="criteria")

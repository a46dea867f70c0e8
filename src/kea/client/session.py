"""A session as an author holds it: where functions are called and variables live. Knows no transport's protocol.

Use it with `with` or `async with`; functions that are called inside belong to it.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Self

from kea.client.loop import LoopThread
from kea.client.outbox import Batch, Outbox
from kea.client.pieces import Pieces
from kea.client.transport import Channel
from kea.client.values import json_of, text_of
from kea.client.variable import Variable
from kea.errors import Cancelled, InvalidRequest, KeaError
from kea.program.call import AnyCall, NativeCallSpec, NativeInput, NativeOutput, VariableRef, VariableSpec
from kea.program.fields import shorten
from kea.program.status import CallRow, SessionStatus

if TYPE_CHECKING:
    from kea.client.connection import Connection
    from kea.client.function import SemanticFunction

logger = logging.getLogger(__name__)

_current: ContextVar[Session | None] = ContextVar("kea_session", default=None)


class Session:
    """Opened by `with` (or `open`), closed at its end: what still runs is cancelled then.

    Methods that talk to the service have a form that waits and one to be awaited. Calling functions, `variable`, `map`
    and `native` never wait.
    """

    def __init__(self, connection: Connection, name: str, *, owns_connection: bool) -> None:
        self.connection = connection
        self.name = name
        self._owns_connection = owns_connection
        self._channel: Channel | None = None
        self._outbox: Outbox | None = None
        self._previous: Session | None = None
        self._is_open = False
        self.streams: set[Pieces] = set()

    @property
    def loop(self) -> LoopThread:
        return self.connection.loop

    def __enter__(self) -> Self:
        self.open()
        self._enter()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        _current.set(self._previous)
        with _behind(error):
            self.close()

    async def __aenter__(self) -> Self:
        await self.aopen()
        self._enter()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        _current.set(self._previous)
        with _behind(error):
            await self.aclose()

    def open(self) -> None:
        """Open the session (`with` does). Raises `InvalidRequest` while it is open."""
        self._check_closed()
        if self._owns_connection:
            self.connection.open()
        try:
            self.loop.run(self._open())
        except BaseException:
            if self._owns_connection:
                self.connection.close()
            raise

    async def aopen(self) -> None:
        """Await `open`."""
        self._check_closed()
        if self._owns_connection:
            await self.connection.aopen()
        try:
            await self.loop.arun(self._open())
        except BaseException:
            if self._owns_connection:
                await self.connection.aclose()
            raise

    def close(self) -> None:
        """End the session: its calls are cancelled, its variables that were not read are gone. May be called twice."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            self.loop.run(self._close())
        finally:
            if self._owns_connection:
                self.connection.close()

    async def aclose(self) -> None:
        """Await `close`."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            await self.loop.arun(self._close())
        finally:
            if self._owns_connection:
                await self.connection.aclose()

    def variable(self, value: str | None = None, *, name: str = "") -> Variable:
        """Create a variable: with a value, or to be set later by `set` or as the output of a call."""
        spec = VariableSpec(self.create_id(), name, None if value is None else text_of(value, "value"))
        return Variable(self, spec.id, name, self._require_outbox().add(variables=[spec]))

    def map(self, function: SemanticFunction, *lists: Iterable[Any], **common: Any) -> list[Any]:
        """Call a function once per item (or per row of several lists, which must be as long as each other).

        `common` are keyword arguments of every call. Returns what the calls return, in order; the call of item 3 is
        called `find[3]` in errors and timelines. Raises `InvalidRequest` for what is no list, before any call is made.
        """
        rows = list(zip(*(_items(items, function.name) for items in lists), strict=True))
        return [function.call_at(self, idx, row, common) for idx, row in enumerate(rows)]

    def native(self, function: str, /, *, outputs: Sequence[str] = ("result",), **inputs: Any) -> Any:
        """Call a function that the operator registered; inputs are variables or JSON values.

        Returns a variable, or a list of them when `outputs` names several.
        """
        values = {
            name: VariableRef(value.id)
            if isinstance(value, Variable)
            else json_of(value, f"input {name!r} of {function}")
            for name, value in inputs.items()
        }
        self.check_owned(value for value in inputs.values() if isinstance(value, Variable))
        targets = [NativeOutput(name, self.create_id()) for name in outputs]
        arguments = tuple(NativeInput(name, value) for name, value in values.items())
        written = self.submit(NativeCallSpec(self.create_id(), function, function, arguments, tuple(targets)))
        return written[0] if len(written) == 1 else written

    def cancel(self, variables: Variable | Iterable[Variable] | None = None) -> list[str]:
        """Cancel the calls that write these variables (or this one), or all calls; return the ids of those that ran.

        What reads their outputs fails with `CallFailed`, whose cause is the `Cancelled` that their own readers get.
        """
        return self.loop.run(self._cancel(variables))

    async def acancel(self, variables: Variable | Iterable[Variable] | None = None) -> list[str]:
        """Await `cancel`."""
        return await self.loop.arun(self._cancel(variables))

    def status(self) -> SessionStatus:
        """Return the session's state with a timeline row per call."""
        return self.loop.run(self._status())

    async def astatus(self) -> SessionStatus:
        """Await `status`."""
        return await self.loop.arun(self._status())

    def timeline(self) -> tuple[CallRow, ...]:
        """Return a row per call, in the order of submission."""
        return self.status().calls

    # For functions and variables

    def create_id(self) -> str:
        """Return a new id of a call or a variable."""
        return uuid.uuid4().hex

    def submit(self, call: AnyCall, targets: Mapping[str, Variable | None] | None = None) -> list[Variable]:
        """Send a call soon; return the variables of its outputs, those in `targets` where they are given."""
        batch = self._require_outbox().add([call])
        return [
            self._written_by(call, (targets or {}).get(output.name), output.variable_id, output.name, batch)
            for output in call.outputs
        ]

    def check_owned(self, variables: Iterable[Variable]) -> None:
        """Raise `InvalidRequest` for a variable of another session."""
        stranger = next((variable for variable in variables if variable.session is not self), None)
        if stranger is not None:
            raise InvalidRequest(
                f"{stranger!r} belongs to another session.",
                hint="Read its value there and pass that, or call the function in that session.",
            )

    async def reach(self, batch: Batch, variable_id: str) -> Channel:
        """Return the channel once the batch is accepted; runs on the connection's loop. Raises why it was refused."""
        outbox = self._require_outbox()
        await outbox.check(batch, variable_id)
        return self._require_channel()

    async def _open(self) -> None:
        transport = self.connection.transport
        self._channel = await transport.open_session(self.name)
        self._outbox = Outbox(self.loop, self._channel, transport.linger_s)
        self._is_open = True

    async def _close(self) -> None:
        channel, self._channel = self._channel, None
        if self._outbox is not None:
            await self._outbox.close()
        try:
            if channel is not None:
                await channel.close()
        finally:
            for stream in tuple(self.streams):
                if not stream.is_running:  # one that runs is told by the service
                    await stream.close()

    async def _cancel(self, variables: Variable | Iterable[Variable] | None) -> list[str]:
        call_ids = None
        if variables is not None:
            chosen = [variables] if isinstance(variables, Variable) else list(variables)
            self.check_owned(chosen)
            call_ids = [variable.call_id for variable in chosen if variable.call_id is not None]
        await self._require_outbox().settle()
        return await self._require_channel().cancel(call_ids)

    async def _status(self) -> SessionStatus:
        await self._require_outbox().settle()
        return await self._require_channel().status()

    def _written_by(
        self, call: AnyCall, target: Variable | None, variable_id: str, name: str, batch: Batch
    ) -> Variable:
        if target is None:
            return Variable(self, variable_id, name, batch, call)
        target.become_output(call, batch)
        return target

    def _enter(self) -> None:
        self._previous = _current.get()
        _current.set(self)

    def _check_closed(self) -> None:
        if self._is_open:
            raise InvalidRequest("the session is open already.", hint="Create another one.")

    def _require_outbox(self) -> Outbox:
        if self._outbox is None:
            raise InvalidRequest("the session is not open.", hint="Use it with `with`, or call open().")
        return self._outbox

    def _require_channel(self) -> Channel:
        if self._channel is None:
            raise Cancelled("the session was closed.", hint="Read variables before it closes.")
        return self._channel


def choose_session(variables: Iterator[Variable]) -> Session | None:
    """Return the current session of this thread or task, else that of the first variable, else None."""
    session = _current.get()
    if session is None:
        variable = next(variables, None)
        session = None if variable is None else variable.session
    return session


def _items(items: object, function: str) -> Iterable[Any]:
    """Return what a map runs over. Raises `InvalidRequest` for one text, a mapping, or what has no items."""
    if isinstance(items, Iterable) and not isinstance(items, str | bytes | Mapping | Variable):
        return items
    raise InvalidRequest(
        f"map({function}, ...) is given {shorten(items)} ({type(items).__name__}); it runs over a list, or any other "
        "iterable but a text or a dict.",
        hint="Put a single item into a list: [item].",
        param="lists",
    )


@contextmanager
def _behind(error: BaseException | None) -> Iterator[None]:
    """Close behind an error: what goes wrong then must not stand in its place."""
    try:
        yield
    except KeaError as failure:
        if error is None:
            raise
        logger.warning("the session could not be closed: %s", failure)

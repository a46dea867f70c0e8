"""The transport to a service in this process, on the connection's loop. Knows no HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from kea.program.call import Program
from kea.program.status import SessionStatus
from kea.service import Service, Session
from kea.types import Criteria

ServiceFactory = Callable[[], AbstractAsyncContextManager[Service]]


class EmbeddedTransport:
    """Opens a service with `create_service` (called on the loop) and closes it, and whatever it opened, at the end."""

    linger_s = 0.0

    def __init__(self, create_service: ServiceFactory) -> None:
        self._create_service = create_service
        self._stack = AsyncExitStack()
        self._service: Service | None = None

    async def open(self) -> None:
        self._service = await self._stack.enter_async_context(self._create_service())

    async def open_session(self, name: str) -> EmbeddedChannel:
        assert self._service is not None, "the transport is not open"
        return EmbeddedChannel(self._service, self._service.create_session(name=name))

    async def close(self) -> None:
        await self._stack.aclose()


class EmbeddedChannel:
    """A session of the service."""

    def __init__(self, service: Service, session: Session) -> None:
        self._service = service
        self._session = session

    async def submit(self, program: Program) -> None:
        self._service.submit(self._session, program)

    async def set(self, variable_id: str, value: str) -> None:
        self._service.set(self._session, variable_id, value)

    async def get(self, variable_id: str, criteria: Criteria | None, deadline_s: float | None) -> str:
        return await self._service.get(self._session, variable_id, criteria, deadline_s)

    def stream(self, variable_id: str, criteria: Criteria | None) -> AsyncGenerator[str]:
        return self._service.stream(self._session, variable_id, criteria)

    async def cancel(self, call_ids: Sequence[str] | None) -> list[str]:
        return self._service.cancel(self._session, call_ids)

    async def status(self) -> SessionStatus:
        return self._service.status(self._session)

    async def close(self) -> None:
        self._service.close_session(self._session)

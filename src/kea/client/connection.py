"""A connection to a service: a transport and the event loop on which it lives. `connect` is what authors call."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from kea.client.loop import LoopThread
from kea.client.session import Session
from kea.client.transport import Transport
from kea.errors import InvalidRequest

if TYPE_CHECKING:
    from kea.client.embedded import ServiceFactory


class Connection:
    """Carries any number of sessions; use it with `with` or `async with`, around them."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._loop: LoopThread | None = None

    @property
    def loop(self) -> LoopThread:
        if self._loop is None:
            raise InvalidRequest("the connection is not open.", hint="Use it, or its session, with `with`.")
        return self._loop

    def session(self, name: str = "") -> Session:
        """Create a session, to be opened by `with`."""
        return Session(self, name, owns_connection=False)

    def open(self) -> None:
        """Connect: start an embedded engine, or a client of the server. Raises `InvalidRequest` while it is open."""
        self._loop = self._new_loop()
        try:
            self._loop.run(self.transport.open())
        except BaseException:
            self._loop.stop()
            raise

    async def aopen(self) -> None:
        """Await `open`."""
        self._loop = self._new_loop()
        try:
            await self._loop.arun(self.transport.open())
        except BaseException:
            await asyncio.to_thread(self._loop.stop)
            raise

    def close(self) -> None:
        """End the connection, and with it an embedded engine. May be called twice."""
        if self.loop.is_stopped:
            return
        try:
            self.loop.run(self.transport.close())
        finally:
            self.loop.stop()

    async def aclose(self) -> None:
        """Await `close`."""
        if self.loop.is_stopped:
            return
        try:
            await self.loop.arun(self.transport.close())
        finally:
            await asyncio.to_thread(self.loop.stop)

    def _new_loop(self) -> LoopThread:
        if self._loop is not None and not self._loop.is_stopped:
            raise InvalidRequest("the connection is open already.", hint="Create another one.")
        return LoopThread()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        await self.aopen()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


def create_connection(
    url: str | None = None, *, api_key: str | None = None, service: ServiceFactory | None = None, **engine: Any
) -> Connection:
    """Create a connection: to the server at `url`, or to a service in this process.

    Without `url`, `service` creates the service (an async context manager, entered on the connection's loop); without
    both, `engine` are the options of an embedded engine (`model` and the fields of `kea.engine.config.EngineConfig`).
    """
    if url is not None:
        if service is not None or engine:
            raise InvalidRequest("url is given together with options of an embedded engine; give one.", param="url")
        from kea.client.http import HttpTransport

        return Connection(HttpTransport(url, api_key))
    if api_key is not None:
        raise InvalidRequest("api_key is given without url; an embedded engine has no keys.", param="api_key")
    from kea.client.embedded import EmbeddedTransport  # here, so that a client of a server loads no service

    if service is None:
        from kea.client.local import embedded_service

        return Connection(EmbeddedTransport(lambda: embedded_service(**engine)))
    if engine:
        raise InvalidRequest("service is given together with options of an embedded engine; give one of them.")
    return Connection(EmbeddedTransport(service))


def connect(url: str | None = None, *, name: str = "", **options: Any) -> Session:
    """Return a session with a connection of its own, to be opened by `with`; `options` as in `create_connection`.

    `kea.connect()` runs the embedded model in this process; `kea.connect("http://host:8000", api_key=...)` uses a
    server.
    """
    return Session(create_connection(url, **options), name, owns_connection=True)

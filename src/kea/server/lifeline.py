"""What may end a request from outside: its client leaves, or the server ends. Knows no endpoints."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from kea.errors import ServiceClosing
from kea.server.lifecycle import Lifecycle


class Lifeline:
    """Cancels the task that entered it when its reason to run is gone, and raises that reason at the exit.

    `ClientDisconnect` when the client left (once `watch` was called), `ServiceClosing` when the server ended it. A
    stream that is cut sees `asyncio.CancelledError` and may look at `reason` to send a last word.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.reason: Exception | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._lifecycle.enter(self.end)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lifecycle.leave(self.end)
        if self._watcher is not None:
            self._watcher.cancel()
        if self.reason is not None and self._task is not None:
            self._task.uncancel()
            if kind is asyncio.CancelledError:
                raise self.reason from error

    def watch(self, receive: Receive) -> None:
        """Notice from now on when the client leaves. The request's body must have been read."""
        self._watcher = asyncio.create_task(self._watch(receive))

    def end(self) -> None:
        """Cut the request because the server ends."""
        self._cut(ServiceClosing("The server shut down before this request was done.", hint="Send it again elsewhere."))

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._cut(ClientDisconnect())

    def _cut(self, reason: Exception) -> None:
        if self.reason is None and self._task is not None:
            self.reason = reason
            self._task.cancel()

"""The pieces of a variable for one reader. Knows no threads: all of it runs on the connection's loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from kea.errors import Cancelled
from kea.types import Criteria

if TYPE_CHECKING:
    from kea.client.outbox import Batch
    from kea.client.session import Session

CLOSE_POLL_S = 0.001


class Pieces:
    """Opened by its first `next`, closed by its reader, or with its session where the reader has forgotten it."""

    def __init__(self, session: Session, batch: Batch, variable_id: str, criteria: Criteria | None) -> None:
        self._session = session
        self._batch = batch
        self._variable_id = variable_id
        self._criteria = criteria
        self._source: AsyncGenerator[str] | None = None
        self._num_steps = 0
        self._is_closed = False

    @property
    def is_running(self) -> bool:
        """Tell whether somebody waits for the next piece."""
        return self._num_steps > 0

    async def next(self) -> str | None:
        """Return the next piece, None at the end. Raises the variable's error, `Cancelled` once it is closed."""
        if self._is_closed:
            raise Cancelled("the session was closed.", hint="Read variables before it closes.")
        self._num_steps += 1
        try:
            if self._source is None:
                channel = await self._session.reach(self._batch, self._variable_id)
                self._source = channel.stream(self._variable_id, self._criteria)
                self._session.streams.add(self)
            return await anext(self._source, None)
        finally:
            self._num_steps -= 1

    async def close(self) -> None:
        """Give the stream up; a step of it that was cancelled (a Ctrl-C of its reader) may still be on its way out."""
        self._is_closed = True
        self._session.streams.discard(self)
        while self.is_running:  # noqa: ASYNC110 - a step tells nobody when it ends
            await asyncio.sleep(CLOSE_POLL_S)
        if self._source is not None:
            await self._source.aclose()

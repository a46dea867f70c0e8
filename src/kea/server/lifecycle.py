"""The life of the server's requests: who is running, when new ones are refused, when the running ones are ended.

Knows no HTTP and reads no clock but the loop's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum

from kea.errors import ServiceClosing


class Stage(Enum):
    """OPEN: requests are taken. DRAINING: running ones go on, new ones are refused. ENDING: running ones fail."""

    OPEN = "open"
    DRAINING = "draining"
    ENDING = "ending"


MOVES: dict[Stage, frozenset[Stage]] = {
    Stage.OPEN: frozenset({Stage.DRAINING}),
    Stage.DRAINING: frozenset({Stage.ENDING}),
    Stage.ENDING: frozenset(),
}

End = Callable[[], None]


class Lifecycle:
    """The stage of the server and its running requests. Made by `create_app`; the runner drains it."""

    def __init__(self) -> None:
        self.stage = Stage.OPEN
        self._running: dict[End, None] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_running(self) -> int:
        return len(self._running)

    def check_open(self) -> None:
        """Raise `ServiceClosing` once a shutdown has begun."""
        if self.stage is not Stage.OPEN:
            raise ServiceClosing(
                "The server is shutting down and takes no new requests.", hint="Try another, or later."
            )

    def enter(self, end: End) -> None:
        """Count a request as running. `end` is called if the server ends before it leaves."""
        self._running[end] = None
        self._idle.clear()

    def leave(self, end: End) -> None:
        self._running.pop(end, None)
        if not self._running:
            self._idle.set()

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests and wait for the running ones; end those that still run after `grace_s`."""
        if self.stage is Stage.OPEN:
            self._move(Stage.DRAINING)
        try:
            await asyncio.wait_for(self._idle.wait(), grace_s)
        except TimeoutError:
            self.end()
            await self._idle.wait()

    def end(self) -> None:
        """Fail every running request now."""
        if self.stage is Stage.OPEN:
            self._move(Stage.DRAINING)
        if self.stage is Stage.DRAINING:
            self._move(Stage.ENDING)
        for end in list(self._running):
            end()

    def _move(self, stage: Stage) -> None:
        assert stage in MOVES[self.stage], f"the server cannot go from {self.stage} to {stage}"
        self.stage = stage

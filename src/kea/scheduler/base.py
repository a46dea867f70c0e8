"""Which call runs on which engine, and when: the contract. Knows no prompts, no clock, no HTTP.

The service adds calls whose inputs are ready and asks for placements whenever something changed: a call was added, one
ended, an engine came back. "Not now" is no placement; the call stays queued.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

CallKey = tuple[int, str]
"""The session's id and the call's."""


@dataclass(frozen=True, slots=True)
class QueuedCall:
    """A call that may run. `priority`: smaller is earlier; then `order`: arrival of its application, then its own.

    `tenant`: whose it is; nobody's calls hold up those of another.
    """

    key: CallKey
    priority: int
    order: tuple[int, int]
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """An engine as the scheduler sees it: calls placed on it and how many it may hold.

    A doubtful engine died a moment ago; it is chosen only where no other has room.
    """

    engine_idx: int
    num_calls: int
    max_calls: int
    is_doubtful: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    key: CallKey
    engine_idx: int


class Scheduler(Protocol):
    """A queue of calls that knows where they go."""

    def add(self, call: QueuedCall) -> None: ...

    def remove(self, key: CallKey) -> None:
        """Forget a queued call; one that is not queued is no error."""
        ...

    def place(self, loads: Sequence[EngineLoad]) -> list[Placement]:
        """Take the calls that run now out of the queue, each with its engine, in the order in which they start."""
        ...

    def __len__(self) -> int: ...

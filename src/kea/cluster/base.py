"""The transport seam: how commands reach an engine and events come back. Knows nothing of models or prompts.

A channel carries lists of commands one way and lists of messages the other. Its receiver is called on the channel's own
thread. `Died` is the last message of an engine that ended by itself; a channel can be opened again afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kea.engine.base import Command, EngineInfo, Event
from kea.errors import KeaError


@dataclass(frozen=True, slots=True)
class Loading:
    """The model is being loaded: what is done now, and the share that is done (None when unknown)."""

    stage: str
    done_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine accepts commands."""

    info: EngineInfo


@dataclass(frozen=True, slots=True)
class Died:
    """The engine ended: it could not be loaded, or its process died. Nothing that was on it is answered any more."""

    error: KeaError


Message = Event | Loading | Ready | Died
Receiver = Callable[[Sequence[Message]], None]


class Channel(Protocol):
    """A way to one engine. `open` starts the engine and returns at once; `close` ends it and waits for its end."""

    def open(self, receive: Receiver) -> None: ...

    def send(self, commands: Sequence[Command]) -> None: ...

    def close(self) -> None: ...

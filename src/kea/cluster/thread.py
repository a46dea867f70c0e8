"""An engine on a thread of this process: the embedded mode. Knows the loop, no prompts."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

from kea.cluster.abandoned import abandon
from kea.cluster.base import Died, Message, Ready, Receiver
from kea.cluster.loop import CLOSE, Inbox, run_engine
from kea.engine.base import Command
from kea.engine.config import EngineConfig


class ThreadChannel:
    """Runs the engine on a daemon thread. `close` joins it, but does not wait for a model that is still loading.

    Nobody would see that model, and what loads may be busy for seconds with what cannot be interrupted (imports,
    compilers). It ends at its next report of progress, and says nothing more.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._running: _Running | None = None

    def open(self, receive: Receiver) -> None:
        self._running = _Running(self._config, receive)
        self._running.start()

    def send(self, commands: Sequence[Command]) -> None:
        assert self._running is not None, "the channel is not open"
        self._running.inbox.put(commands)

    def close(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None


class _Abandoned(BaseException):
    """Ends the loading of a model that nobody waits for; no `Exception`, since a loader may handle those."""


class _Running:
    """One engine on its thread, from its loading to its end."""

    def __init__(self, config: EngineConfig, receive: Receiver) -> None:
        self.inbox: Inbox = queue.SimpleQueue()
        self._config = config
        self._receive = receive
        self._is_loading = True
        self._is_closed = False
        self._thread = threading.Thread(target=self._main, name="kea-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._is_closed = True
        self.inbox.put(CLOSE)
        if self._is_loading:
            abandon(self._thread)
        else:
            self._thread.join()

    def _main(self) -> None:
        try:
            run_engine(self._config, self.inbox, self._pass_on)
        except _Abandoned:
            return

    def _pass_on(self, messages: Sequence[Message]) -> None:
        if self._is_closed and self._is_loading:
            raise _Abandoned
        if any(isinstance(message, Ready | Died) for message in messages):
            self._is_loading = False
        self._receive(messages)

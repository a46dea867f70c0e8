"""An engine on a thread of this process: the embedded mode. Knows the loop, no prompts."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

from kea.cluster.base import Receiver
from kea.cluster.loop import CLOSE, Inbox, run_engine
from kea.engine.base import Command
from kea.engine.config import EngineConfig


class ThreadChannel:
    """Runs the engine on a daemon thread; `close` joins it."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._inbox: Inbox = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def open(self, receive: Receiver) -> None:
        self._inbox = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=run_engine, args=(self._config, self._inbox, receive), name="kea-engine", daemon=True
        )
        self._thread.start()

    def send(self, commands: Sequence[Command]) -> None:
        self._inbox.put(commands)

    def close(self) -> None:
        if self._thread is not None:
            self._inbox.put(CLOSE)
            self._thread.join()
            self._thread = None

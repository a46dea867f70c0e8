"""An engine in a worker process: the server's mode. Its death does not touch the server. Knows the loop, no prompts.

The worker is spawned, not forked. Two threads keep the pipe flowing: one in the worker that takes commands while a step
runs, one here that takes messages. The worker ends when its pipe closes, so it never outlives this process, and it
ignores SIGINT: a Ctrl-C is for the parent to handle.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection

from kea.cluster.base import Died, Message, Ready, Receiver
from kea.cluster.loop import CLOSE, Inbox, run_engine
from kea.engine.base import Command
from kea.engine.config import EngineConfig
from kea.errors import EngineDied

logger = logging.getLogger(__name__)

JOIN_S = 10.0


class ProcessChannel:
    """Runs the engine in a process of its own; `close` ends it (and kills it if it does not end)."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None
        self._reader: threading.Thread | None = None
        self._is_ready = False

    @property
    def pid(self) -> int | None:
        """The worker's process id; None while there is none."""
        return self._process.pid if self._process is not None else None

    def open(self, receive: Receiver) -> None:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_work, args=(self._config, theirs), name="kea-engine", daemon=True)
        with _interrupts_blocked():
            self._process.start()
        theirs.close()
        self._connection = ours
        self._is_ready = False

        def take(messages: Sequence[Message]) -> None:
            self._is_ready = self._is_ready or any(isinstance(message, Ready) for message in messages)
            receive(messages)

        self._reader = threading.Thread(
            target=_read, args=(ours, self._process, take), name="kea-engine-reader", daemon=True
        )
        self._reader.start()

    def send(self, commands: Sequence[Command]) -> None:
        assert self._connection is not None, "the channel is not open"
        try:
            self._connection.send(commands)
        except OSError:
            logger.warning("a command could not be sent: the engine's process is gone")  # the reader reports its death

    def close(self) -> None:
        if self._process is None or self._connection is None:
            return
        if self._is_ready:
            self._ask_to_end(self._process, self._connection)
        self._process.kill()  # one that still loads reads no commands, and has nothing to lose
        self._process.join()
        self._connection.close()
        self._process = self._connection = None

    def _ask_to_end(self, process: multiprocessing.process.BaseProcess, connection: Connection) -> None:
        with contextlib.suppress(OSError):
            connection.send(CLOSE)
        process.join(JOIN_S)
        if process.is_alive():
            logger.warning("the engine's process did not end in %.0f s and is killed", JOIN_S)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Keep SIGINT from a process that is started here until it ignores it: it inherits this thread's mask."""
    resource_tracker.ensure_running()  # starting it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _read(connection: Connection, process: multiprocessing.process.BaseProcess, receive: Receiver) -> None:
    """Pass messages on until the worker closes its end; tell of its death if it did not say a last word itself."""
    last: Message | None = None
    while True:
        try:
            messages = connection.recv()
        except (EOFError, OSError):
            break
        last = messages[-1]
        receive(messages)
    if not isinstance(last, Died):
        process.join(1.0)
        receive([Died(EngineDied(f"The engine's process ended (exit code {process.exitcode})."))])


def _work(config: EngineConfig, connection: Connection) -> None:
    """The worker's main function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=_take_commands, args=(connection, inbox), name="kea-engine-inbox", daemon=True).start()
    with contextlib.suppress(BrokenPipeError):  # the parent is gone: nobody is left to be told
        run_engine(config, inbox, connection.send)


def _take_commands(connection: Connection, inbox: Inbox) -> None:
    while True:
        try:
            commands = connection.recv()
        except (EOFError, OSError):
            inbox.put(CLOSE)
            return
        inbox.put(commands)
        if commands is CLOSE:
            return

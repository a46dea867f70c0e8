"""An engine in a worker process: the server's mode. Its death does not touch the server. Knows the loop, no prompts.

The worker is a fresh interpreter that imports this module, and nothing of the program that started it: unlike with
`multiprocessing`, a script needs no `if __name__ == "__main__"`, and runs once. Three threads keep the pipe flowing, so
that neither side ever waits for the other: one in the worker that takes commands while a step runs, and here one that
sends and one that takes messages. The worker ends when its pipe closes, so it never outlives this process, and it
ignores SIGINT and SIGTERM, which terminals and supervisors send to a whole group: they are for the parent to handle.
Its own end skips what an interpreter does at its end, which takes seconds once torch is imported, for nobody's good.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import NoReturn

from kea.cluster.base import Died, Message, Ready, Receiver
from kea.cluster.loop import CLOSE, Inbox, run_engine
from kea.cluster.packing import Packed, pack, unpack
from kea.engine.base import Command
from kea.engine.config import EngineConfig
from kea.errors import EngineDied

logger = logging.getLogger(__name__)

JOIN_S = 2.0
"""How long a worker may take to end: a step. What it would still compute, nobody reads."""
PARENTS = (signal.SIGINT, signal.SIGTERM)
MAIN = "import sys; sys.path[:] = {path!r}; from kea.cluster.process import work; work({fd})"


class ProcessChannel:
    """Runs the engine in a process of its own; `close` ends it (and kills it if it does not end)."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._worker: Worker | None = None

    @property
    def pid(self) -> int | None:
        """The worker's process id; None while there is none."""
        return self._worker.process.pid if self._worker is not None else None

    def open(self, receive: Receiver) -> None:
        self._worker = Worker(self._config, receive)

    def send(self, commands: Sequence[Command]) -> None:
        if self._worker is not None:  # else it was closed meanwhile
            self._worker.outbox.put(commands)

    def close(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()


class Worker:
    """One worker process with its pipe and our two threads. Lives until `close`, though its process may end before."""

    def __init__(self, config: EngineConfig, receive: Receiver) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            self.process = _start(theirs.fileno())
        self.outbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._receive = receive
        self._is_ready = False
        self._threads = [
            threading.Thread(target=self._read, name="kea-engine-reader", daemon=True),
            threading.Thread(target=self._write, name="kea-engine-writer", daemon=True),
        ]
        self.outbox.put(config)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the process and the threads, and wait for them."""
        self.outbox.put(CLOSE)
        self._end(JOIN_S if self._is_ready else 0.0)  # one that still loads reads no commands, and has nothing to lose
        for thread in self._threads:
            thread.join()
        self._connection.close()

    def _end(self, patience_s: float) -> None:
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            if patience_s:
                logger.info("the engine's process did not end in %.0f s and is killed", patience_s)
            self.process.kill()
            self.process.wait()

    def _write(self) -> None:
        while True:
            commands = self.outbox.get()
            try:
                self._connection.send(commands)
            except OSError:
                return  # the process is gone, which the reader tells
            if commands is CLOSE:
                return

    def _read(self) -> None:
        """Pass messages on until the worker closes its end; tell of its death if it did not say a last word itself."""
        last: Message | None = None
        while (messages := _try_receive(self._connection)) is not None:
            last = messages[-1]
            self._is_ready = self._is_ready or isinstance(last, Ready)
            self._receive(messages)
        if not isinstance(last, Died):
            self._end(JOIN_S)
            self._receive([Died(EngineDied(f"The engine's process ended (exit code {self.process.returncode})."))])


def _try_receive(connection: Connection) -> Sequence[Message] | None:
    try:
        packed: Sequence[Packed] = connection.recv()
    except (EOFError, OSError):
        return None
    return unpack(packed)


def _start(fd: int) -> subprocess.Popen[bytes]:
    """Start a worker that inherits the end `fd` of a pipe, with the signals blocked until it ignores them."""
    code = MAIN.format(path=sys.path, fd=fd)
    with _signals_blocked():
        return subprocess.Popen([sys.executable, "-c", code], pass_fds=(fd,), stdin=subprocess.DEVNULL)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block the parent's signals in this thread; a process that is started meanwhile inherits that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work(fd: int) -> None:
    """The worker's main function: run the engine whose configuration is the first thing that comes over the pipe."""
    for number in PARENTS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENTS)
    connection = Connection(fd)
    inbox: Inbox = queue.SimpleQueue()
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent is gone: nobody is left to be told
        config: EngineConfig = connection.recv()
        threading.Thread(target=_take_commands, args=(connection, inbox), name="kea-engine-inbox", daemon=True).start()
        run_engine(config, inbox, lambda messages: connection.send(pack(messages)))
    _leave()


def _leave() -> NoReturn:
    """End this process at once. Every message was sent: the pipe holds it for the parent."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


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

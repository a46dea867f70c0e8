"""A system in a process of its own, asked over pipes. Owns that process and its log.

Does not know what is asked. The process is in a session of its own, so that Ctrl-C reaches this program alone, which
ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from pathlib import Path
from typing import IO, Any

from kea.bench.engine.base import Answer, Order, Refusal, SystemSpec

_ANSWERING = Path(__file__).parent / "drivers" / "answering.py"
_CLOSE_S = 3.0
_CHUNK_BYTES = 1 << 16


class ProcessSystem:
    """One driver's process. Begins at once; `close` ends it, whatever it does."""

    def __init__(self, spec: SystemSpec, log: Path) -> None:
        """Start the process; what it prints goes to `log`. Raises OSError where its python cannot be run."""
        self.spec = spec
        self.log = log
        self._partial = b""
        self._is_closed = False
        settings = [f"{name}={value}" for name, value in spec.env.items()]
        command = ["env", *settings, str(spec.python), "-P", str(_ANSWERING), str(spec.driver)]
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )

    @property
    def label(self) -> str:
        return self.spec.label

    def ask(self, order: Order, timeout_s: float) -> Answer | Refusal:
        """Send an order and wait for its answer. After a timeout the process is ended: its answer would be late."""
        if self._is_closed:
            return Refusal("died", "its process was ended before")
        line = json.dumps({"op": order.operation, **order.arguments}) + "\n"
        try:
            _pipe(self._process.stdin).write(line.encode())
            _pipe(self._process.stdin).flush()
        except OSError:
            pass  # it has ended; its last line may say why
        reply = self._read_line(time.monotonic() + timeout_s)
        if isinstance(reply, Refusal):
            self.close()
            return reply
        if "result" in reply:
            return Answer(reply["result"])
        if "unsupported" in reply:
            return Refusal("unsupported", str(reply["unsupported"]))
        return Refusal("failed", str(reply["error"]))

    def close(self) -> None:
        """End the process and all that it started. May be called again."""
        if self._is_closed:
            return  # the number of its group may be another's by now
        self._is_closed = True
        end_group(self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue  # what was still to be written has no reader

    def _read_line(self, deadline: float) -> dict[str, Any] | Refusal:
        stdout = _pipe(self._process.stdout).fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._partial:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return Refusal("timeout", "no answer in time")
                data = os.read(stdout, _CHUNK_BYTES)
                if not data:
                    return Refusal("died", f"its process ended: {self._last_words()}")
                self._partial += data
        line, _, self._partial = self._partial.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip()[:300] if lines else "it said nothing"


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a group, politely at first, and then whatever is left of the group."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        try:
            process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            _signal_group(process, signal.SIGKILL)
            process.wait()
    _signal_group(process, signal.SIGKILL)  # a leader that has ended, by itself too, may leave its children behind


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # the group is empty: what was wanted
        os.killpg(process.pid, number)


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "the process was started with pipes"
    return pipe

"""A real server in a process of its own, started as a user would, and what a test asks of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STOP_S = 60


@dataclass(frozen=True)
class Serving:
    """A running `kea serve`."""

    url: str
    model: str
    process: subprocess.Popen[str]

    @property
    def engine_pid(self) -> int:
        """The process id of the engine's worker."""
        lists = Path(f"/proc/{self.process.pid}/task").glob("*/children")  # whichever thread started it
        children = " ".join(path.read_text() for path in lists).split()
        return next(int(pid) for pid in children if "kea.cluster.process" in Path(f"/proc/{pid}/cmdline").read_text())

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, by its name with labels."""
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            lines = response.read().decode().splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        samples = self.metrics().items()
        return sum(v for key, v in samples if key.split("{")[0] == name and all(label in key for label in wanted))

    def stop(self) -> int:
        """Interrupt the server as Ctrl-C does; return its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(STOP_S)


@contextlib.contextmanager
def serving(model: Path, *options: str) -> Iterator[Serving]:
    """Run `kea serve` on a free port until the block ends."""
    kea = Path(sys.executable).parent / "kea"
    command = [str(kea), "serve", str(model), "--port", "0", "--json-ready", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"the server ended with code {process.wait(STOP_S)} before it was ready"
        ready: dict[str, Any] = json.loads(line)
        yield Serving(ready["url"], ready["model"], process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise

"""Runs `kea` as a user does: as a process, with its exit status, what it wrote, and its signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kea.client.embedded import EmbeddedTransport
from kea.service import Service
from tests.fakes.engine import FakeEngine

KEA = (sys.executable, "-c", "import sys; sys.argv[0] = 'kea'; from kea.cli import main; main()")
TIMEOUT_S = 150


def environment(**more: str) -> dict[str, str]:
    """Return a quiet environment: one thread, no hub, no key of the user, no colours, wide output."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("KEA_")}
    path = os.pathsep.join(entry for entry in sys.path if entry)
    fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120", "NO_COLOR": "1", "PYTHONPATH": path}
    return {**given, **fixed, **more}


def kea(
    *arguments: str, stdin: str = "", cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*KEA, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=cwd,
        env=environment(**variables),
        check=False,
    )


@dataclass(slots=True)
class Served:
    """A running `kea serve`, and the line of JSON that it wrote when it was ready."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    def interrupt(self) -> int:
        """Send SIGINT to the whole group, as a terminal does, and return the exit status."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(TIMEOUT_S)


@contextlib.contextmanager
def start(*arguments: str, cwd: Path | None = None, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command in a group of its own; whatever is left of it at the end is killed."""
    process = subprocess.Popen(
        [*KEA, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(**variables),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@contextlib.contextmanager
def serve(*arguments: str, cwd: Path | None = None, **variables: str) -> Iterator[Served]:
    """Start `kea serve` on a free port and wait until it is ready."""
    with start("serve", *arguments, "--port", "0", "--json-ready", cwd=cwd, **variables) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(f"kea serve ended before it was ready: {process.communicate()[1]}")
        yield Served(process, json.loads(line))


def children_of(pid: int) -> list[int]:
    """Return the ids of a process's children, whichever thread started them (Linux)."""
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(text) for text in " ".join(lists).split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def fake_transport(engine: FakeEngine) -> EmbeddedTransport:
    """Return a transport to a service over a fake engine."""

    @asynccontextmanager
    async def create_service() -> AsyncIterator[Service]:
        async with Service([engine], engine.tokenizer) as service:
            yield service

    return EmbeddedTransport(create_service)

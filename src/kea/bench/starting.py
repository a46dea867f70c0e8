"""Servers that `kea bench serve` starts itself: Kea's and the peers', each on a free port. Owns their processes.

Does not know the load. A server's log is deleted after the run; its last line is in the error if it does not come up.
"""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx2

from kea.bench.base import Peer
from kea.bench.engine.base import Precision
from kea.bench.engine.peers import ConversionFailed, as_gguf
from kea.bench.engine.processes import end_group
from kea.bench.engine.settings import read_weights
from kea.bench.engine.shapes import SHAPES
from kea.bench.load.client import Target
from kea.errors import InvalidRequest, Unreachable

KEA, TRANSFORMERS = "kea", "transformers"
_DEFAULT_FLAGS = {KEA: (), "vllm": ("--dtype", "float32"), TRANSFORMERS: ("--dtype", "float32", "--device", "cpu")}
KINDS = (KEA, "vllm", TRANSFORMERS, "llamacpp")
_HOST = "127.0.0.1"
_POLL_S = 0.5
_STARTED_BY = "from kea.cli import main; main()"


@dataclass(frozen=True, slots=True)
class Start:
    """One server to start: `kind` is its name in the report, `flags` are its own."""

    kind: str
    model: str
    flags: tuple[str, ...]
    port: int

    @property
    def url(self) -> str:
        return f"http://{_HOST}:{self.port}"


@dataclass(frozen=True, slots=True)
class Places:
    """Where peers' environments are, where weights made on the spot go (None: the user's cache), and how long all
    servers together may take to be ready."""

    peers_dir: Path
    cache_dir: Path | None
    ready_s: float = 1200.0


class View(Protocol):
    """What watches the run."""

    def phase(self, text: str) -> None: ...


def read_starts(starts: Sequence[str], flags: Sequence[str]) -> tuple[Start, ...]:
    """Read KIND=MODEL and KIND=FLAGS, and choose a free port for each. Raises InvalidRequest."""
    given = read_pairs(flags, "start-flags", "FLAGS")
    models = read_pairs(starts, "start", "MODEL")
    for kind in models:
        if kind not in KINDS:
            raise InvalidRequest(f"start names {kind!r}; allowed: {', '.join(KINDS)}.", param="start")
    for kind in given:
        if kind not in models:
            started = ", ".join(models) or "none"
            raise InvalidRequest(
                f"start-flags names {kind!r}, which is not started; started: {started}.", param="start"
            )
    chosen = []
    for kind, model in models.items():
        own = tuple(shlex.split(given[kind])) if kind in given else _DEFAULT_FLAGS.get(kind, ())
        chosen.append(Start(kind, model, own, _free_port()))
    return tuple(chosen)


def read_pairs(texts: Sequence[str], param: str, what: str) -> dict[str, str]:
    """Read NAME=VALUE, each name once; `what` says what the value is. Raises InvalidRequest without the value."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value) or name in pairs:
            # The value may be a key: it is not repeated here.
            raise InvalidRequest(f"{param} for {name!r}: each is NAME={what}, with a name of its own.", param=param)
        pairs[name] = value
    return pairs


def targets_of(starts: Sequence[Start]) -> tuple[Target, ...]:
    """Return where the servers will be."""
    return tuple(Target(one.kind, one.url, knows_ignore_eos=one.kind != TRANSFORMERS) for one in starts)


@dataclass(frozen=True, slots=True)
class Fleet:
    """What came up: the models that must be named, by kind; and the servers that did not, with the reason."""

    models: Mapping[str, str]
    lost: tuple[Peer, ...]


@contextmanager
def serving(starts: Sequence[Start], places: Places, view: View) -> Iterator[Fleet]:
    """Start the servers one after another; all have ended when the block ends.

    One that is not installed or does not come up is lost. Raises InvalidRequest or Unreachable, with its last words,
    where that is the first one: then there is nothing to measure.
    """
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kea-bench-")))
        deadline_s = time.monotonic() + places.ready_s
        models: dict[str, str] = {}
        lost: list[Peer] = []
        for start in starts:
            view.phase(f"starting the server of {start.kind}")
            try:
                process, model = _start(start, places, logs / f"{start.kind}.log")
                stack.callback(end_group, process)
                _wait_until_ready(start, process, logs / f"{start.kind}.log", deadline_s)
            except (Unreachable, InvalidRequest) as error:
                if start is starts[0]:
                    raise
                is_absent = isinstance(error, InvalidRequest)
                lost.append(Peer(start.kind, "absent" if is_absent else "failed", None, str(error)))
                continue
            if start.kind == TRANSFORMERS:
                models[start.kind] = model  # its server lists none
        yield Fleet(models, tuple(lost))


def _start(start: Start, places: Places, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start a server; return its process and the model that it was told to load."""
    program = _program(start, places)
    model = _model(start, places)
    command = [*program, model, "--host", _HOST, "--port", str(start.port), *start.flags]
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True), model


def _model(start: Start, places: Places) -> str:
    """Return what the server is told to load: a shape is written on the spot, anything else is as it was given."""
    if start.model not in SHAPES:
        return start.model
    weights = read_weights(start.model, places.cache_dir)
    weights.cache.mkdir(parents=True, exist_ok=True)
    if start.kind != "llamacpp":
        return str(weights.checkpoint(Precision.BF16))
    try:
        return str(as_gguf(places.peers_dir / start.kind, weights, Precision.BF16)[0])
    except (ConversionFailed, OSError) as error:
        raise Unreachable(f"The model of {start.kind} could not be made: {error}.") from error


def _program(start: Start, places: Places) -> list[str]:
    if start.kind == KEA:
        return [sys.executable, "-c", _STARTED_BY, "serve"]
    script = places.peers_dir / start.kind / "serve"
    if not script.exists():
        raise InvalidRequest(
            f"start names {start.kind}, whose environment is not in {places.peers_dir}.",
            hint=f"`make peers ARGS={start.kind}` makes it; --peers-dir says where it is.",
            param="start",
        )
    return [str(script)]


def _wait_until_ready(start: Start, process: subprocess.Popen[bytes], log: Path, deadline_s: float) -> None:
    """Wait until the server answers anything but that it is not ready yet."""
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise Unreachable(f"The server of {start.kind} ended with {process.returncode}: {_last_words(log)}")
        try:
            if httpx2.get(f"{start.url}/health", timeout=2.0, trust_env=False).status_code < 500:
                return
        except httpx2.TransportError:
            pass  # it does not listen yet
        time.sleep(_POLL_S)
    raise Unreachable(f"The server of {start.kind} was not ready in time: {_last_words(log)}")


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " / ".join(line.strip() for line in lines[-3:])[:500] or "it said nothing"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port

"""The systems of a run: their processes started, loaded and, after a crash, started again. Owns their ends.

Systems are loaded one after another, so that the time of each to its first token is its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kea.bench.base import Peer
from kea.bench.engine.base import Answer, Order, Refusal, System, SystemSpec
from kea.bench.engine.processes import ProcessSystem

_MAX_RELOADS = 2
_FIRST_TOKEN = 3  # any vocabulary has it


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """What every system is told when it loads, and where its log goes."""

    arguments: Mapping[str, Any]
    logs: Path
    timeout_s: float


class LoadedSystem:
    """A system that lives until `close`; one whose process ended is loaded again when it is asked next."""

    def __init__(self, spec: SystemSpec, load: LoadOrder) -> None:
        self._spec = spec
        self._load = load
        self._process: ProcessSystem | None = None
        self._num_reloads = 0
        self.load_s: float | None = None

    @property
    def label(self) -> str:
        return self._spec.label

    def load(self, timeout_s: float) -> Answer | Refusal:
        """Start the process and load the model. The answer has the version and a note."""
        started = time.perf_counter()
        process = self._start("")
        if isinstance(process, Refusal):
            return process
        self._process = process  # from here on `close` ends it, also where Ctrl-C comes while it loads
        answer = process.ask(self._load_order(), min(timeout_s, self._load.timeout_s))
        if isinstance(answer, Refusal):
            self.close()
        else:
            self.load_s = time.perf_counter() - started
        return answer

    def ask(self, order: Order, timeout_s: float) -> Answer | Refusal:
        """Ask the process, loaded anew where it has ended. An answer that takes too long ends it."""
        if self._process is None:
            if self._num_reloads >= _MAX_RELOADS:
                return Refusal("died", f"its process ended {_MAX_RELOADS + 1} times")
            self._num_reloads += 1
            loaded = self.load(self._load.timeout_s)
            if isinstance(loaded, Refusal):
                return loaded
        assert self._process is not None, "load answered without a process"
        answer = self._process.ask(order, timeout_s)
        if isinstance(answer, Refusal) and answer.kind in ("died", "timeout"):
            self.close()
        return answer

    def ask_new(self, order: Order, timeout_s: float) -> Answer | Refusal:
        """Start another process for this order alone; `seconds` of the answer is the time since that start."""
        started = time.perf_counter()
        process = self._start("-new")
        if isinstance(process, Refusal):
            return process
        try:
            for step in (self._load_order(), order):
                answer = process.ask(step, timeout_s)
                if isinstance(answer, Refusal):
                    return answer
            return Answer({"seconds": time.perf_counter() - started})
        finally:
            process.close()

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def _start(self, suffix: str) -> ProcessSystem | Refusal:
        try:
            return ProcessSystem(self._spec, self._load.logs / f"{self.label.replace(' ', '-')}{suffix}.log")
        except OSError as error:
            return Refusal("failed", f"{self._spec.python} cannot be run: {error}")

    def _load_order(self) -> Order:
        own = {"model": str(self._spec.model), **self._spec.load_args}
        return Order("load", {**self._load.arguments, **own})


def warm_up() -> Order:
    """Return the order that every system carries out once before it is measured."""
    prompts = [[_FIRST_TOKEN + index] * 64 for index in range(2)]
    return Order("decode", {"prompts": prompts, "steps": 8, "warmups": 8})


class Fleet:
    """All systems of a run, in the order in which they are named; closed at the end of the block."""

    def __init__(self, systems: Sequence[LoadedSystem]) -> None:
        self._all = tuple(systems)
        self.systems: list[System] = []
        self.peers: list[Peer] = []

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for system in self._all:
            system.close()

    def load(self, system: LoadedSystem, timeout_s: float) -> Peer:
        """Load one of the systems; one that cannot be loaded is recorded with the reason and measured no further."""
        started = time.monotonic()
        answer = system.load(timeout_s)
        if isinstance(answer, Answer):
            # Its lazy work: what is compiled or allocated at the first steps is no part of a step.
            warmed = system.ask(warm_up(), max(1.0, timeout_s - (time.monotonic() - started)))
            if isinstance(warmed, Refusal) and warmed.kind != "unsupported":
                answer = warmed
        if isinstance(answer, Refusal):
            peer = Peer(system.label, "failed", None, answer.message)
        else:
            peer = Peer(system.label, "measured", answer.values["version"], answer.values["note"])
            self.systems.append(system)
        self.peers.append(peer)
        return peer

"""The contract of every benchmark: what it measured, on what, and what that shows.

Owns the `Report` and its JSON form, whose field names are permanent (schema version 1, `docs/benchmarks.md`).
Does not know what was measured: loads, engines and servers are words and numbers here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kea.bench.statistics import Summary, summarize

SCHEMA_VERSION = 1
Scalar = str | int | float | bool | None
PeerStatus = Literal["measured", "absent", "failed"]


@dataclass(frozen=True, slots=True)
class Machine:
    """What the measurement ran on.

    `load_average`: the one-minute load before it began. `other_share`: what other processes took of the cores' time
    while it ran, from 0 to 1. None where unknown.
    """

    cpu: str
    num_cores: int
    memory_bytes: int | None
    os: str
    load_average: float | None
    other_share: float | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """The model measured, as far as the benchmark knows it."""

    name: str
    num_parameters: int | None = None
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """One system of the run: Kea itself or one that it is compared with."""

    name: str
    status: PeerStatus = "measured"
    version: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Bound:
    """What no system could exceed in this run, measured or given by the load."""

    name: str
    value: float
    unit: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """Every value that one system gave for one quantity in one scenario, in the order of measuring."""

    name: str
    peer: str
    unit: str
    values: tuple[float, ...]
    scenario: str = ""

    def summary(self) -> Summary:
        return summarize(self.values)


@dataclass(frozen=True, slots=True)
class Failure:
    """Requests or runs of one system that gave no result, counted by their reason."""

    peer: str
    kind: str
    message: str
    count: int


@dataclass(frozen=True, slots=True)
class Show:
    """One sentence of the result. `holds` is None where there is no goal, or where the value could not be measured."""

    name: str
    value: float | None
    unit: str
    goal: str | None = None
    holds: bool | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """One run of one benchmark command. `load` holds the settings that shaped the load; no secret belongs in it."""

    command: str
    created_at: str
    duration_s: float
    machine: Machine
    versions: Mapping[str, str]
    model: Model
    load: Mapping[str, Scalar]
    peers: tuple[Peer, ...]
    samples: tuple[Sample, ...]
    bounds: tuple[Bound, ...] = ()
    failures: tuple[Failure, ...] = ()
    shows: tuple[Show, ...] = ()
    interrupted: bool = False
    schema_version: int = field(default=SCHEMA_VERSION, init=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: plain values under the names of `docs/benchmarks.md`."""
        return {
            "schema_version": self.schema_version,
            "command": self.command,
            "created_at": self.created_at,
            "duration_s": round(self.duration_s, 3),
            "interrupted": self.interrupted,
            "machine": _fields(self.machine),
            "versions": dict(self.versions),
            "model": _fields(self.model),
            "load": dict(self.load),
            "peers": [_fields(peer) for peer in self.peers],
            "bounds": [_fields(bound) for bound in self.bounds],
            "samples": [_sample_to_dict(sample) for sample in self.samples],
            "failures": [_fields(failure) for failure in self.failures],
            "shows": [_fields(show) for show in self.shows],
        }

    def write(self, path: Path) -> None:
        """Write the JSON form to `path`, making its folder. Raises OSError where that is impossible."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _sample_to_dict(sample: Sample) -> dict[str, Any]:
    summary = sample.summary()
    return {
        "name": sample.name,
        "peer": sample.peer,
        "scenario": sample.scenario,
        "unit": sample.unit,
        "count": summary.count,
        "mean": summary.mean,
        "median": summary.median,
        "p99": summary.p99,
        "values": [round(value, 6) for value in sample.values],
    }

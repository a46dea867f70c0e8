"""The contract of the engine benchmark: systems that are asked one thing at a time, what is asked, what came of it.

Knows no process, no model's bytes and no terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol

RefusalKind = Literal["unsupported", "failed", "timeout", "died"]


class Precision(StrEnum):
    """How the weights are held while they are read. Arithmetic is each system's own at that setting."""

    BF16 = "bf16"
    F16 = "f16"
    F32 = "f32"
    INT8 = "int8"


@dataclass(frozen=True, slots=True)
class SystemSpec:
    """One system at one precision. `python` runs `driver`; `model` is what it loads; `env` is set for its process."""

    name: str
    precision: Precision
    python: Path
    driver: Path
    model: Path
    env: Mapping[str, str] = field(default_factory=dict)
    load_args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.name} {self.precision}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What an order gave."""

    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an order gave nothing: the system has no such thing, failed at it, took too long, or ended."""

    kind: RefusalKind
    message: str


@dataclass(frozen=True, slots=True)
class Order:
    """One measurement: an operation of the drivers and its arguments."""

    operation: str
    arguments: Mapping[str, Any]


class System(Protocol):
    """A loaded system that answers orders, one at a time. Its maker closes it."""

    @property
    def label(self) -> str: ...

    @property
    def load_s(self) -> float | None: ...

    def ask(self, order: Order, timeout_s: float) -> Answer | Refusal: ...

    def ask_new(self, order: Order, timeout_s: float) -> Answer | Refusal:
        """Ask a process started for this order alone; `seconds` of the answer counts from its start."""
        ...

    def close(self) -> None: ...

"""How calls and variables are called in the terminal: `summarise 2`, `summarise 2: summary`. Knows no terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol


class Named(Protocol):
    """A call, as a timeline's row or before it has one."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...


def label_calls(calls: Sequence[Named]) -> Mapping[str, str]:
    """Return a label per call id: its function's name, numbered in order of submission where a name occurs twice."""
    totals = Counter(call.name for call in calls)
    seen: Counter[str] = Counter()
    labels: dict[str, str] = {}
    for call in calls:
        seen[call.name] += 1
        labels[call.id] = f"{call.name} {seen[call.name]}" if totals[call.name] > 1 else call.name
    return labels


def format_seconds(seconds: float) -> str:
    """Return a duration with three digits at most: `-` for none, milliseconds below a second."""
    if seconds < 0.0005:
        return "-"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"

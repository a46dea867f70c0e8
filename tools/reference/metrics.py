"""The page of metrics: what `/metrics` exposes, read from an exposition that is made without any engine."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from tools.loading import load_attribute
from tools.reference.page import Page, format_table

HELP = re.compile(r"^# HELP (\S+) (.*)$", re.MULTILINE)
TYPE = re.compile(r"^# TYPE (\S+) (\S+)$", re.MULTILINE)
SAMPLE = re.compile(r"^([^#{\s]+)\{([^}]*)\}", re.MULTILINE)
LABEL = re.compile(r'(\w+)="')
IMPLIED = ("_total", "_bucket", "_sum", "_count")


def render_metrics() -> str:
    """Return the table of metrics, sorted by name."""
    snapshot = create_blank(load_attribute("kea.engine.base", "Snapshot"))
    metrics = load_attribute("kea.server.metrics", "Metrics")("model")
    metrics.saw_failure("engine_fault")  # its labels show once it was counted
    text = metrics.expose(snapshot).decode()
    kinds, labels = dict(TYPE.findall(text)), _read_labels(text)
    rows = [
        [f"`{name}`", kinds[name], ", ".join(f"`{label}`" for label in labels.get(name, ())), meaning]
        for name, meaning in sorted(HELP.findall(text))
        if not name.endswith("_created")
    ]
    return format_table(["Metric", "Type", "Labels", "Meaning"], rows)


def _read_labels(text: str) -> dict[str, list[str]]:
    """Return the labels of each metric that has a sample; `le`, a histogram's own, is left out."""
    labels: dict[str, list[str]] = {}
    for sample, pairs in SAMPLE.findall(text):
        found = [label for label in LABEL.findall(pairs) if label != "le"]
        for name in (sample, *(sample.removesuffix(suffix) for suffix in IMPLIED)):
            labels[name] = found
    return labels


def create_blank(cls: Any) -> Any:
    """Make a value of a type that stands in the engine's snapshot: ones for numbers, None where that is allowed."""
    if isinstance(cls, type) and dataclasses.is_dataclass(cls):
        hints = typing.get_type_hints(cls)
        return cls(**{field.name: create_blank(hints[field.name]) for field in dataclasses.fields(cls)})
    origin = typing.get_origin(cls) or cls
    if origin is types.UnionType or origin is typing.Union:
        return None if type(None) in typing.get_args(cls) else create_blank(typing.get_args(cls)[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {}
    return origin(1) if origin in {int, float, bool} else origin()


PAGE = Page("metrics.md", "Metrics", render_metrics)

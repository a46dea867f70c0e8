"""Server-sent events: how a stream of pieces is written and read. Knows no HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

KEEP_ALIVE = b":\n\n"


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event: `piece` with a text, `value` or `failure` of a variable, `done`, or `error` with its wire form."""

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the bytes of the event, with the empty line that ends it."""
        return f"event: {self.name}\ndata: {json.dumps(self.data)}\n\n".encode()


class EventDecoder:
    """Reads lines of a stream (without their line ends) into events. Comments and unknown fields are skipped."""

    def __init__(self) -> None:
        self._name = "message"
        self._data: list[str] = []

    def feed(self, line: str) -> Iterator[StreamEvent]:
        if not line:
            yield from self._end_event()
            return
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "event":
            self._name = value
        elif key == "data":
            self._data.append(value)

    def _end_event(self) -> Iterator[StreamEvent]:
        name, lines = self._name, self._data
        self._name, self._data = "message", []
        if lines:
            yield StreamEvent(name, json.loads("\n".join(lines)))

"""What parsers of outputs give: reasoning, content and tool calls, piece by piece. Knows no HTTP.

A parser is fed the text of one output in pieces of any size and is finished once. The pieces it gives, joined, do not
depend on how the text was cut, so the same parser serves streams and whole answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model thought before it answered."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """Text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """The beginning of the tool call `call_idx`: which function it calls."""

    call_idx: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the arguments of the tool call `call_idx`, as JSON text."""

    call_idx: int
    text: str


Delta = Reasoning | Content | CallBegin | CallArguments


class Parser(Protocol):
    """Reads one output. `finish` gives what was held back and ends it."""

    def feed(self, text: str) -> list[Delta]: ...

    def finish(self) -> list[Delta]: ...


class Status(Enum):
    """Of a region of text that should be a tool call: still being read, read, or something else."""

    OPEN = "open"
    DONE = "done"
    FAILED = "failed"


class Region(Protocol):
    """Reads the text behind a marker that should be tool calls. `raw` is what it took, for the case that it is none."""

    @property
    def status(self) -> Status: ...

    @property
    def raw(self) -> str: ...

    @property
    def num_begun(self) -> int: ...

    def feed(self, text: str) -> tuple[list[Delta], str]:
        """Take text; return the pieces and the text that is not part of the region."""
        ...


class PlainParser:
    """All text is content."""

    def feed(self, text: str) -> list[Delta]:
        return [Content(text)] if text else []

    def finish(self) -> list[Delta]:
        return []


class Chain:
    """Reasoning first; what the first parser calls content goes through the second."""

    def __init__(self, reasoning: Parser, content: Parser) -> None:
        self._reasoning = reasoning
        self._content = content

    def feed(self, text: str) -> list[Delta]:
        return self._pass_on(self._reasoning.feed(text))

    def finish(self) -> list[Delta]:
        return [*self._pass_on(self._reasoning.finish()), *self._content.finish()]

    def _pass_on(self, deltas: Iterable[Delta]) -> list[Delta]:
        passed: list[Delta] = []
        for delta in deltas:
            passed += self._content.feed(delta.text) if isinstance(delta, Content) else [delta]
        return passed


def held_len(text: str, marks: Iterable[str]) -> int:
    """Return the length of the longest end of `text` that may be the beginning of a mark."""
    sizes = (
        size for mark in marks for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])
    )
    return max(sizes, default=0)


def split_safe(text: str, marks: Iterable[str]) -> tuple[str, str]:
    """Split text into what can be passed on and what must wait: the beginning of a mark, and white space before it."""
    safe = text[: len(text) - held_len(text, marks)].rstrip()
    return safe, text[len(safe) :]

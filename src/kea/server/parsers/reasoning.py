"""Reasoning between tags at the beginning of an output (`<think>` and the like), before the answer."""

from __future__ import annotations

from enum import Enum

from kea.server.parsers.base import Content, Delta, Reasoning, split_safe


class _Place(Enum):
    BEFORE = "before"
    INSIDE = "inside"
    BEHIND = "behind"


class TagReasoning:
    """Splits an output at its tags. `begins_inside`: the prompt ended with the opening tag, so the output has none.

    White space around the reasoning, and before the answer that follows it, is dropped.
    """

    def __init__(self, begin: str, end: str, *, begins_inside: bool = False) -> None:
        self._begin = begin
        self._end = end
        self._place = _Place.INSIDE if begins_inside else _Place.BEFORE
        self._buffer = ""
        self._is_fresh = begins_inside  # nothing but white space came since the place was entered

    def feed(self, text: str) -> list[Delta]:
        self._buffer += text
        deltas: list[Delta] = []
        if self._place is _Place.BEFORE:
            self._look_for_begin()
        if self._place is _Place.INSIDE:
            deltas += self._take_inside()
        if self._place is _Place.BEHIND:
            deltas += self._take_behind()
        return deltas

    def finish(self) -> list[Delta]:
        text, self._buffer = self._buffer, ""
        if self._place is _Place.INSIDE:
            text = text.lstrip() if self._is_fresh else text
            return [Reasoning(text.rstrip())] if text.strip() else []
        return [Content(text)] if text else []

    def _look_for_begin(self) -> None:
        start = self._buffer.lstrip()
        if start.startswith(self._begin):
            self._enter(_Place.INSIDE, start[len(self._begin) :])
        elif not self._begin.startswith(start):
            self._place = _Place.BEHIND

    def _take_inside(self) -> list[Delta]:
        text = self._buffer.lstrip() if self._is_fresh else self._buffer
        thought, found, behind = text.partition(self._end)
        if found:
            self._enter(_Place.BEHIND, behind)
            thought = thought.rstrip()
        else:
            thought, self._buffer = split_safe(text, [self._end])
            self._is_fresh = self._is_fresh and not thought
        return [Reasoning(thought)] if thought else []

    def _take_behind(self) -> list[Delta]:
        text = self._buffer.lstrip() if self._is_fresh else self._buffer
        self._is_fresh = self._is_fresh and not text
        self._buffer = ""
        return [Content(text)] if text else []

    def _enter(self, place: _Place, text: str) -> None:
        self._place, self._buffer, self._is_fresh = place, text, True

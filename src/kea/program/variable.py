"""Semantic variables: text that is written once, in pieces, and read by many. Knows no clock, no loop and no calls.

    EMPTY ──> STREAMING ──> READY
      │           │
      └───────────┴──────> FAILED          (EMPTY may also become READY at once)

A producer that starts again after its engine died writes from the beginning: what was streamed is kept as long as the
same text comes again. Where it differs, pieces that nobody has read are replaced; if someone has read them, `write`
raises, and the producer fails the variable: a reader never sees text taken back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum

from kea.errors import Conflict, KeaError
from kea.types import Criteria


class VariableState(Enum):
    EMPTY = "empty"
    STREAMING = "streaming"
    READY = "ready"
    FAILED = "failed"


MOVES: dict[VariableState, frozenset[VariableState]] = {
    VariableState.EMPTY: frozenset({VariableState.STREAMING, VariableState.READY, VariableState.FAILED}),
    VariableState.STREAMING: frozenset({VariableState.READY, VariableState.FAILED}),
    VariableState.READY: frozenset(),
    VariableState.FAILED: frozenset(),
}

Watcher = Callable[[], None]


class SemanticVariable:
    """One variable of a session; lives as long as the session. Watchers are called after every change.

    `num_bytes`: of memory that its text takes.
    """

    def __init__(self, variable_id: str, name: str = "") -> None:
        self.id = variable_id
        self.name = name
        self.state = VariableState.EMPTY
        self.error: KeaError | None = None
        self.criteria: set[Criteria] = set()
        self.num_bytes = 0
        self._pieces: list[str] = []
        self._num_read = 0
        self._expected = ""
        self._checked_len = 0
        self._watchers: dict[Watcher, None] = {}

    @property
    def is_done(self) -> bool:
        return self.state is VariableState.READY or self.state is VariableState.FAILED

    @property
    def value(self) -> str:
        """The whole text. Raises the variable's error if it failed; reading one that is not done is our bug."""
        if self.error is not None:
            raise self.error.with_traceback(None)
        assert self.state is VariableState.READY, f"variable {self.id} is {self.state.value}"
        return self._pieces[0] if len(self._pieces) == 1 else self.text

    @property
    def text(self) -> str:
        """What is written so far, whatever the state."""
        return "".join(self._pieces)

    def set(self, text: str) -> None:
        """Set the whole value at once. Raises `Conflict` unless the variable is empty."""
        if self.state is not VariableState.EMPTY:
            raise Conflict(
                f"variable {self.id!r} is {self.state.value}; it can be set once, while it is empty.",
                param="variable",
            )
        self._pieces = [text] if text else []
        self.num_bytes = text_bytes(text)
        self._move(VariableState.READY)

    def write(self, text: str) -> None:
        """Append a piece. After `begin_again`, raises `Conflict` when read text would have to be taken back."""
        if self.state is not VariableState.STREAMING:
            self._move(VariableState.STREAMING)
        if self._expected:
            text = self._verify(text)
        if text:
            self._pieces.append(text)
            self.num_bytes += text_bytes(text)
            self._notify()

    def finish(self) -> None:
        """Make the variable ready. Raises `Conflict` when a second run ended earlier than what was read."""
        if self._expected:
            self._take_back(self._checked_len)
        self._move(VariableState.READY)

    def fail(self, error: KeaError) -> None:
        self.error = error
        self._move(VariableState.FAILED)

    def begin_again(self) -> None:
        """Expect the text so far once more: its producer runs again from the start."""
        self._expected = self.text
        self._checked_len = 0

    def read_from(self, idx: int) -> list[str]:
        """Return the pieces from `idx` on, and remember that they were read: they are never taken back."""
        self._num_read = max(self._num_read, len(self._pieces))
        return self._pieces[idx:]

    def watch(self, watcher: Watcher) -> None:
        self._watchers[watcher] = None

    def unwatch(self, watcher: Watcher) -> None:
        del self._watchers[watcher]

    def _verify(self, text: str) -> str:
        """Compare with what was streamed before; return the part of `text` that is new."""
        expected = self._expected[self._checked_len : self._checked_len + len(text)]
        same_len = _common_len(expected, text)
        self._checked_len += same_len
        if same_len < len(expected):
            self._take_back(self._checked_len)
        elif self._checked_len == len(self._expected):
            self._expected = ""
        return text[same_len:]

    def _take_back(self, length: int) -> None:
        """Keep the first `length` characters, if nobody read further."""
        self._expected = ""
        idx, start = 0, 0
        while idx < len(self._pieces) and start + len(self._pieces[idx]) <= length:
            start += len(self._pieces[idx])
            idx += 1
        if idx >= len(self._pieces):
            return
        if self._num_read > idx:
            raise Conflict(
                f"variable {self.id!r}: its producer ran again and wrote different text behind character {length}, "
                "but what it wrote first was already read."
            )
        self._pieces[idx:] = [self._pieces[idx][: length - start]] if length > start else []
        self.num_bytes = sum(map(text_bytes, self._pieces))

    def _move(self, state: VariableState) -> None:
        if state not in MOVES[self.state]:
            raise Conflict(f"variable {self.id!r} is {self.state.value}; it cannot become {state.value}.")
        self.state = state
        self._notify()

    def _notify(self) -> None:
        for watcher in tuple(self._watchers):
            watcher()


def text_bytes(text: str) -> int:
    """Return the memory that a text takes; an empty one is not kept."""
    return sys.getsizeof(text) if text else 0


def _common_len(first: str, second: str) -> int:
    if first == second:
        return len(first)
    limit = min(len(first), len(second))
    return next((idx for idx in range(limit) if first[idx] != second[idx]), limit)

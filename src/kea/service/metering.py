"""Measuring one output while it is read: time to its first token, between tokens, to its end. Knows no metrics."""

from __future__ import annotations

from typing import Protocol

from kea.types import Chunk, FinishReason, Usage


class Meter(Protocol):
    """Who is told; all times in seconds."""

    def saw_first_token(self, seconds: float) -> None: ...

    def saw_next_tokens(self, seconds: float, num_tokens: int) -> None:
        """Take `num_tokens` tokens that came `seconds` after those before them."""
        ...

    def saw_end(self, reason: FinishReason, usage: Usage, seconds: float) -> None: ...


class OutputTimer:
    """Times one output against the moment `arrived_s` since which it was waited for, on the same clock."""

    __slots__ = ("_arrived_s", "_last_s", "_meter")

    def __init__(self, meter: Meter, arrived_s: float) -> None:
        self._meter = meter
        self._arrived_s = arrived_s
        self._last_s: float | None = None

    def see(self, chunk: Chunk, now_s: float) -> None:
        num_tokens = len(chunk.token_ids)
        if num_tokens and self._last_s is None:
            self._meter.saw_first_token(now_s - self._arrived_s)
            num_tokens -= 1
            self._last_s = now_s
        if num_tokens and self._last_s is not None:
            self._meter.saw_next_tokens(now_s - self._last_s, num_tokens)
            self._last_s = now_s
        if chunk.finish is not None:
            self._meter.saw_end(chunk.finish.reason, chunk.finish.usage, now_s - self._arrived_s)

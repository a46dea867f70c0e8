"""The timing of one streamed answer, as a state machine over its events.

Owns what counts as a token's arrival in OpenAI's two stream formats. Does not know HTTP or clocks: it is told each
event's content and the time at which it came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_TEXT_FIELDS = ("content", "reasoning_content", "reasoning", "tool_calls", "refusal")


@dataclass(frozen=True, slots=True)
class Usage:
    """The token counts that a server reported for one request."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None = None


@dataclass(slots=True)
class StreamTimer:
    """Collects the arrival times of one answer; lives as long as its request. Times are on the caller's clock.

    A chunk counts as tokens if it carries text, or if it is empty without being the role's or the finish chunk: a token
    whose bytes are no whole character yet. The finish chunk counts only where the usage says that a token is missing.
    """

    token_times: list[float] = field(default_factory=list)
    last_time: float | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    _bare_finish_time: float | None = None

    def observe(self, event: Mapping[str, Any], now: float) -> None:
        """Take in one event. Raises KeyError, TypeError or ValueError where it has not OpenAI's shape."""
        if event.get("usage"):
            self.usage = _read_usage(event["usage"])
        for choice in event.get("choices") or ():
            self._observe_choice(choice, now)

    def _observe_choice(self, choice: Mapping[str, Any], now: float) -> None:
        self.last_time = now
        delta: Mapping[str, Any] = choice.get("delta") or {}
        is_finish = choice.get("finish_reason") is not None
        if choice.get("text") or any(delta.get(name) for name in _TEXT_FIELDS):
            self.token_times.append(now)
        elif is_finish:
            self._bare_finish_time = now
        elif not delta.get("role"):
            self.token_times.append(now)
        if is_finish:
            self.finish_reason = str(choice["finish_reason"])

    def close(self) -> None:
        """Settle whether the finish chunk was a token. Call it once, at the end of the stream."""
        if self._bare_finish_time is None:
            return
        num_expected = self.usage.output_tokens if self.usage else max(1, len(self.token_times))
        if len(self.token_times) < num_expected:
            self.token_times.append(self._bare_finish_time)

    @property
    def num_output_tokens(self) -> int:
        """What the usage says, else the number of chunks that counted as tokens."""
        return self.usage.output_tokens if self.usage else len(self.token_times)


def _read_usage(usage: Mapping[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens")
    return Usage(
        prompt_tokens=int(usage["prompt_tokens"]),
        output_tokens=int(usage.get("completion_tokens") or 0),
        cached_tokens=None if cached is None else int(cached),
    )

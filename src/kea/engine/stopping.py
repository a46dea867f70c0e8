"""When an output ends, and which of its text may be shown. Owns stop strings, stop tokens and the two lengths; no batch.

Text that may be the beginning of a stop string is held back until it is certain; a stop string, an end-of-sequence token
and a stop token are never shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from kea.types import FinishReason, Stopping


class Detokenizer(Protocol):
    """Turns tokens into text piece by piece (`kea.models.detokenizer`)."""

    def push(self, token_ids: Sequence[int]) -> str: ...

    def flush(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Match:
    """A stop string was found: the text before it that was not shown yet, and which one it is."""

    text: str
    stop: str


class StopMatcher:
    """Finds the leftmost of several stop strings in a text that comes in pieces; of two at one place, the longer one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = sorted(stop, key=len, reverse=True)
        self._beginnings = {text[:length] for text in stop for length in range(1, len(text))}
        self._max_len = max(map(len, stop), default=0)
        self._held = ""

    def push(self, piece: str) -> str | Match:
        """Add text; return what is certain now, or the match that ends it."""
        text = self._held + piece
        found = [(index, stop) for stop in self._stop if (index := text.find(stop)) >= 0]
        if found:
            index, stop = min(found, key=lambda match: match[0])
            self._held = ""
            return Match(text[:index], stop)
        num_held = self._num_uncertain(text)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """End the text; return what was held back."""
        text, self._held = self._held, ""
        return text

    def _num_uncertain(self, text: str) -> int:
        longest = min(self._max_len - 1, len(text))
        return next((n for n in range(longest, 0, -1) if text[-n:] in self._beginnings), 0)


@dataclass(frozen=True, slots=True)
class End:
    """Why an output ended, and what of it the context keeps.

    `num_kept` tokens lie wholly before the stop; `residual` is the shown text behind them.
    """

    reason: FinishReason
    num_kept: int
    residual: str = ""
    stop: str | int | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """What a token brought: text that became certain, and the end if it is reached."""

    text: str
    end: End | None = None


class OutputTracker:
    """Follows one output from its first token to its end. `eos_token_ids` end it unless `stopping.ignore_eos`.

    `room`: how many tokens the context can still hold.
    """

    def __init__(
        self, stopping: Stopping, detokenizer: Detokenizer, eos_token_ids: Collection[int], room: int
    ) -> None:
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stopping.stop)
        self._min_tokens = stopping.min_tokens
        self._max_tokens = min(stopping.max_tokens, room)
        self._ends = frozenset(stopping.stop_token_ids)
        if not stopping.ignore_eos:
            self._ends |= frozenset(eos_token_ids)
        self._ends_listed = sorted(self._ends)
        self._boundaries: deque[tuple[int, int]] = deque([(0, 0)])  # (tokens, text length behind them)
        self._num_shown = 0
        self._text_len = 0
        self._tail = ""  # the text behind the first boundary that is kept
        self.num_tokens = 0

    @property
    def banned(self) -> Sequence[int]:
        """The token ids that may not be drawn next: those that would end the output before `min_tokens`."""
        return self._ends_listed if self.num_tokens < self._min_tokens else ()

    def push(self, token_id: int) -> Progress:
        """Add a drawn token; return what it brought."""
        if token_id in self._ends:
            self.num_tokens += 1
            text = self._show(self._matcher.flush() + self._detokenizer.flush())
            return Progress(text, End(FinishReason.STOP, self.num_tokens - 1, stop=token_id))
        self.num_tokens += 1
        matched = self._add(self._detokenizer.push([token_id]))
        if isinstance(matched, Match):
            return self._stop(matched)
        if self.num_tokens >= self._max_tokens:
            return self.finish(FinishReason.LENGTH, matched)
        return Progress(self._show(matched))

    def finish(self, reason: FinishReason, text: str = "") -> Progress:
        """End the output here; every token is kept. `text` is certain text that was not shown yet."""
        matched = self._add(self._detokenizer.flush())
        if isinstance(matched, Match):
            return self._stop(Match(text + matched.text, matched.stop))
        rest = self._show(text + matched + self._matcher.flush())
        return Progress(rest, End(reason, self.num_tokens))

    def _add(self, piece: str) -> str | Match:
        self._text_len += len(piece)
        self._tail += piece
        if piece:
            self._boundaries.append((self.num_tokens, self._text_len))
        if self.num_tokens < self._min_tokens:
            return self._matcher.flush() + piece
        return self._matcher.push(piece)

    def _show(self, text: str) -> str:
        self._num_shown += len(text)
        while len(self._boundaries) > 1 and self._boundaries[1][1] <= self._num_shown:
            _, before = self._boundaries.popleft()
            self._tail = self._tail[self._boundaries[0][1] - before :]
        return text

    def _stop(self, match: Match) -> Progress:
        text = self._show(match.text)
        num_kept, boundary = self._boundaries[0]
        residual = self._tail[: self._num_shown - boundary]
        return Progress(text, End(FinishReason.STOP, num_kept, residual, match.stop))

"""When an output ends, and what of it is emitted and kept. Owns stop strings, end tokens and the bounds on length.

Text that may still become a stop string is held back, so that no part of one is ever emitted. Of several stop strings
the one that is complete first in the text wins, and of those complete at the same character the longest: this needs no
look ahead, and does not depend on how the text is split into tokens. Knows no contexts and no vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from weakref import WeakValueDictionary

from kea.types import Chunk, FinishReason, Stopping


class Detokenizer(Protocol):
    """Turns the tokens of one output into text as they come.

    `is_whole`: all bytes of the tokens pushed were given out as text, none waits for the rest of its character. While
    it `is_plain`, a token of which `try_text` knows the text adds that, and need not be pushed.
    """

    @property
    def is_whole(self) -> bool: ...

    @property
    def is_plain(self) -> bool: ...

    def try_text(self, token_id: int) -> str | None: ...

    def push(self, token_ids: Sequence[int]) -> str: ...

    def flush(self) -> str: ...


@dataclass(frozen=True, slots=True)
class End:
    """The end of an output: the context keeps its first `num_kept` tokens, and owes `residual` to whoever appends next.

    `stop` is the stop string or stop token that matched. The text of the kept tokens and `residual` are together the
    emitted text.
    """

    reason: FinishReason
    num_kept: int
    residual: str = ""
    stop: str | int | None = None


class Progress(NamedTuple):
    """What one token brought: the text that became certain, and the end if it is reached."""

    text: str
    end: End | None = None


class _Pattern:
    """One stop string and how much of it the text ends with (Knuth, Morris, Pratt)."""

    __slots__ = ("_fallbacks", "num_matched", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.num_matched = 0
        self._fallbacks = [0] * len(text)
        for index in range(1, len(text)):
            self._fallbacks[index] = self._next(self._fallbacks[index - 1], text[index])

    def advance(self, char: str) -> bool:
        """Add a character of the text; return whether the stop string is complete."""
        self.num_matched = self._next(self.num_matched, char)
        return self.num_matched == len(self.text)

    def _next(self, num_matched: int, char: str) -> int:
        while num_matched and self.text[num_matched] != char:
            num_matched = self._fallbacks[num_matched - 1]
        return num_matched + (self.text[num_matched] == char)


class StopMatcher:
    """Looks for stop strings in a text that comes in pieces. One per output; of no use after a match or `flush`."""

    __slots__ = ("_firsts", "_held", "_patterns", "matched")

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._patterns = [_Pattern(text) for text in stop]
        self._firsts = _firsts(stop)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Add a piece of text; return what can be emitted: at a match, all that stands before the stop string."""
        assert self.matched is None, "text after the stop"
        if not self._held and self._firsts.isdisjoint(text):
            return text  # no stop string begins here, nor has one begun before
        for index, char in enumerate(text):
            complete = [pattern.text for pattern in self._patterns if pattern.advance(char)]
            if complete:
                self.matched = max(complete, key=len)
                return (self._held + text)[: len(self._held) + index + 1 - len(self.matched)]
        text = self._held + text
        cut = len(text) - max(pattern.num_matched for pattern in self._patterns)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """End the text without a match; return what was held back."""
        held, self._held = self._held, ""
        return held


class Lane(dict[int, Chunk]):
    """The chunks of tokens after which, in a quiet output, nothing is to be looked at: none ends it, and no stop string
    begins in one. Others are a `KeyError`. Found when they are asked for; shared by outputs that stop alike.
    """

    __slots__ = ("__weakref__", "_end_ids", "_firsts", "_try_text")

    def __init__(self, stopping: Stopping, eos_token_ids: Sequence[int], detokenizer: Detokenizer) -> None:
        super().__init__()
        self._end_ids = _end_ids(stopping, eos_token_ids)
        self._firsts = _firsts(stopping.stop)
        self._try_text = detokenizer.try_text

    def __missing__(self, token_id: int) -> Chunk:
        text = self._try_text(token_id) if token_id >= 0 and token_id not in self._end_ids else None
        if text is None or not self._firsts.isdisjoint(text):
            raise KeyError(token_id)
        chunk = self[token_id] = Chunk((token_id,), text)
        return chunk


class Lanes:
    """The lanes of all outputs: one lives as long as some output that stops so does. Lives as long as its engine."""

    def __init__(self) -> None:
        self._lanes: WeakValueDictionary[Hashable, Lane] = WeakValueDictionary()

    def of(
        self, stopping: Stopping, eos_token_ids: Sequence[int], detokenizer: Detokenizer, *, skip_special: bool
    ) -> Lane:
        """Return the lane of outputs that stop so. `detokenizer`: of one that skips special tokens, or does not."""
        key = (stopping.stop, _end_ids(stopping, eos_token_ids), skip_special)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(stopping, eos_token_ids, detokenizer)
        return lane


class OutputTracker:
    """Follows one output from token to token until it ends. Lives with its generation; time per token is constant.

    The first `min_tokens` tokens are free: their text is not searched for stop strings, and `banned` keeps end tokens
    from being drawn.

    While it `is_quiet` nothing is held back: of a token in its `lane`, but for the last one, it is enough to count it.
    """

    __slots__ = (
        "_boundaries",
        "_detokenizer",
        "_emitted_len",
        "_end_ids",
        "_matcher",
        "_max_tokens",
        "_min_tokens",
        "_stop_ids",
        "_tail",
        "_text_len",
        "is_quiet",
        "lane",
        "num_tokens",
    )

    def __init__(
        self,
        stopping: Stopping,
        eos_token_ids: Sequence[int],
        detokenizer: Detokenizer,
        lane: Lane | None = None,
    ) -> None:
        self._min_tokens = stopping.min_tokens
        self._max_tokens = stopping.max_tokens
        self._stop_ids = frozenset(stopping.stop_token_ids)
        self._end_ids = _end_ids(stopping, eos_token_ids)
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stopping.stop)
        self._text_len = 0
        self._emitted_len = 0
        # (tokens, length of their text): the last one that is emitted, and those behind it that are held back
        self._boundaries = [(0, 0)]
        self._tail = ""  # the text behind the first of them
        self.num_tokens = 0
        self.is_quiet = False
        self.lane = Lane(stopping, eos_token_ids, detokenizer) if lane is None else lane

    @property
    def banned(self) -> tuple[int, ...]:
        """The tokens that may not be drawn next."""
        return tuple(sorted(self._end_ids)) if self.num_tokens < self._min_tokens else ()

    @property
    def num_left(self) -> int:
        """How many tokens may still be drawn."""
        return self._max_tokens - self.num_tokens

    def push(self, token_id: int, *, is_complete: bool = False) -> Progress:
        """Add a drawn token. `is_complete`: a constraint lets nothing follow it, so the output ends as stopped."""
        self._catch_up()
        self.num_tokens += 1
        if token_id in self._end_ids:
            stop = token_id if token_id in self._stop_ids else None
            return self._finish(FinishReason.STOP, self.num_tokens - 1, stop)
        piece = self._detokenizer.push((token_id,))
        text = self._add(piece, is_free=self.num_tokens <= self._min_tokens)
        if self._matcher.matched is not None:
            return Progress(text, self._end_at_match())
        if is_complete or self.num_tokens >= self._max_tokens:
            reason = FinishReason.STOP if is_complete else FinishReason.LENGTH
            last = self._finish(reason, self.num_tokens, None)
            return Progress(text + last.text, last.end)
        is_quiet = self._detokenizer.is_plain and self._emitted_len == self._text_len
        self.is_quiet = is_quiet and self.num_tokens >= self._min_tokens
        return Progress(text)

    def finish(self, reason: FinishReason) -> Progress:
        """End the output where it stands; the context keeps all its tokens, and what was held back is emitted."""
        self._catch_up()
        return self._finish(reason, self.num_tokens, None)

    def _catch_up(self) -> None:
        """Note where tokens end that were only counted."""
        if self.is_quiet:
            self._boundaries = [(self.num_tokens, self._text_len)]

    def _finish(self, reason: FinishReason, num_kept: int, stop: int | None) -> Progress:
        text = self._add(self._detokenizer.flush(), is_free=False)
        if self._matcher.matched is not None:
            return Progress(text, self._end_at_match())
        return Progress(text + self._matcher.flush(), End(reason, num_kept, stop=stop))

    def _add(self, piece: str, *, is_free: bool) -> str:
        """Add text; return what can be emitted, and forget the boundaries that no later stop can need."""
        self._text_len += len(piece)
        text = piece if is_free else self._matcher.push(piece)
        self._emitted_len += len(text)
        is_whole = self._detokenizer.is_whole
        if is_whole and self._emitted_len == self._text_len:  # nothing is held back, as nearly always
            self._boundaries = [(self.num_tokens, self._text_len)]
            self._tail = ""
            return text
        self._tail += piece
        if is_whole:
            if self._boundaries[-1][1] == self._text_len:
                self._boundaries.pop()
            self._boundaries.append((self.num_tokens, self._text_len))
        while len(self._boundaries) > 1 and self._boundaries[1][1] <= self._emitted_len:
            _, start = self._boundaries.pop(0)
            self._tail = self._tail[self._boundaries[0][1] - start :]
        return text

    def _end_at_match(self) -> End:
        num_kept, start = self._boundaries[0]
        residual = self._tail[: self._emitted_len - start]
        return End(FinishReason.STOP, num_kept, residual, self._matcher.matched)


def _end_ids(stopping: Stopping, eos_token_ids: Sequence[int]) -> frozenset[int]:
    """Return the tokens that end an output."""
    return frozenset(stopping.stop_token_ids) | (frozenset() if stopping.ignore_eos else frozenset(eos_token_ids))


def _firsts(stop: Sequence[str]) -> frozenset[str]:
    """Return the characters with which stop strings begin."""
    return frozenset(text[0] for text in stop)

"""What a context has dropped. Owns the hidden spans and when each took effect; knows no pages, only positions."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass

Span = tuple[int, int]
"""The positions [start, stop)."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Positions [start, stop), hidden from every position from `at` on."""

    start: int
    stop: int
    at: int


class Drops:
    """The drops of one context: those in effect, and those that wait until `at` tokens are computed.

    What a position's KV holds depends on what was hidden when it was computed. So a context that lost its pages is
    computed again with each drop taking effect where it did at first (`rewind`, then `reach`). `clean_len` counts the
    leading positions that no drop has touched, whose KV is a function of the tokens alone; None: all of them.
    """

    __slots__ = ("_done", "_waiting", "clean_len", "spans")

    def __init__(self) -> None:
        self._done: list[Drop] = []
        self._waiting: list[Drop] = []
        self.spans: list[Span] = []
        self.clean_len: int | None = None

    def __bool__(self) -> bool:
        return self.clean_len is not None

    def __iter__(self) -> Iterator[Drop]:
        yield from self._done
        yield from self._waiting

    def copy(self) -> Drops:
        twin = Drops()
        twin._done = list(self._done)
        twin._waiting = list(self._waiting)
        twin.spans = list(self.spans)
        twin.clean_len = self.clean_len
        return twin

    def add(self, drop: Drop) -> None:
        """Record a drop; it takes effect when `reach` passes its `at`."""
        insort(self._waiting, drop, key=lambda other: other.at)
        clean_len = max(drop.start, drop.at)
        self.clean_len = clean_len if self.clean_len is None else min(self.clean_len, clean_len)

    def reach(self, num_computed: int) -> list[Span]:
        """Put the drops in effect whose `at` is reached, and return their spans."""
        reached: list[Span] = []
        while self._waiting and self._waiting[0].at <= num_computed:
            drop = self._waiting.pop(0)
            self._done.append(drop)
            self._hide(drop.start, drop.stop)
            reached.append((drop.start, drop.stop))
        return reached

    def rewind(self) -> None:
        """Let every drop wait again, for a computation from the start."""
        self._waiting = sorted(self, key=lambda drop: drop.at)
        self._done = []
        self.spans = []

    def clip(self, length: int, num_computed: int) -> None:
        """Forget what lies behind `length`. What is in effect now hides from `num_computed` on."""
        self.spans = [(start, min(stop, length)) for start, stop in self.spans if start < length]
        self._done = _clipped(self._done, length, self.skip(num_computed))
        self._waiting = _clipped(self._waiting, length, length)
        self.clean_len = min((max(drop.start, drop.at) for drop in self), default=None)

    def hides(self, start: int, stop: int) -> bool:
        """Say whether all of [start, stop) is hidden."""
        idx = bisect_right(self.spans, start, key=_start)
        return idx > 0 and self.spans[idx - 1][1] >= stop

    def skip(self, position: int) -> int:
        """Return the first position from `position` on that is not hidden."""
        idx = bisect_right(self.spans, position, key=_start)
        return max(position, self.spans[idx - 1][1]) if idx > 0 else position

    def next_change(self, position: int) -> int | None:
        """Return the first position behind `position` at which a span begins or a waiting drop takes effect."""
        idx = bisect_right(self.spans, position, key=_start)
        changes = [self.spans[idx][0]] if idx < len(self.spans) else []
        if self._waiting:
            changes.append(self._waiting[0].at)
        return min(changes, default=None)

    def runs(self, stop: int) -> tuple[Span, ...]:
        """Return the stretches of [0, stop) that are not hidden."""
        if not self.spans:
            return ((0, stop),) if stop > 0 else ()
        runs = []
        start = 0
        for hidden_start, hidden_stop in self.spans:
            if hidden_start >= stop:
                break
            if start < hidden_start:
                runs.append((start, hidden_start))
            start = hidden_stop
        if start < stop:
            runs.append((start, stop))
        return tuple(runs)

    def _hide(self, start: int, stop: int) -> None:
        first = bisect_left(self.spans, start, key=_stop)  # the first span that touches [start, stop) or lies behind it
        last = bisect_right(self.spans, stop, key=_start)
        if first < last:
            start = min(start, self.spans[first][0])
            stop = max(stop, self.spans[last - 1][1])
        self.spans[first:last] = [(start, stop)]

    def check(self, num_computed: int) -> None:
        """Prove that the spans are merged and sorted, and that what was reached is in effect and nothing else."""
        for (_, stop), (start, _) in zip(self.spans, self.spans[1:], strict=False):
            assert stop < start, f"the dropped spans {self.spans} are not merged and sorted"
        assert all(start < stop for start, stop in self.spans), f"a dropped span of {self.spans} is empty"
        assert all(self.hides(drop.start, drop.stop) for drop in self._done), "a drop in effect hides nothing"
        assert all(drop.at > num_computed for drop in self._waiting), "a drop waits although its moment has passed"
        clean_len = min((max(drop.start, drop.at) for drop in self), default=None)
        assert self.clean_len == clean_len, f"clean_len is {self.clean_len}, should be {clean_len}"


def _clipped(drops: list[Drop], length: int, latest: int) -> list[Drop]:
    return [Drop(drop.start, min(drop.stop, length), min(drop.at, latest)) for drop in drops if drop.start < length]


def _start(span: Span) -> int:
    return span[0]


def _stop(span: Span) -> int:
    return span[1]

"""The memory that the batch will need: how long outputs become, and the most pages that are held at one time.

A context that is admitted is to run to its end: it waits as long as the contexts in the batch, growing as outputs grew
lately and giving their pages back as they end, would need more than there is. After Gong et al., "Past-Future
Scheduler for LLM Serving under SLA Guarantees" (ASPLOS '25), with an even spread over the longer past outputs instead
of a random sample of them. Pure: knows no pages, no contexts.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW = 128
_GOLDEN = (5.0**0.5 - 1.0) / 2.0  # the multiples of this are spread evenly over [0, 1), however many there are


class OutputLengths:
    """The lengths in tokens of the outputs that ended last. Lives as long as its batcher."""

    def __init__(self) -> None:
        self._latest: deque[int] = deque(maxlen=WINDOW)
        self._sorted: list[int] = []

    def note(self, num_tokens: int) -> None:
        """Record the length of an output that ended."""
        self._latest.append(num_tokens)
        self._sorted = sorted(self._latest)

    def expect_left(self, num_written: int, num_left: int, number: int) -> int:
        """Return how many tokens an output that has `num_written`, and may have `num_left` more, is expected to get.

        As many as one of the past outputs that became longer than it is now: the outputs of a batch, by their numbers,
        are spread evenly over these (a batch whose outputs all had the mean length would end at once, and no real one
        does). Where there is none, half of what it may have.
        """
        first = bisect.bisect_right(self._sorted, num_written)
        if first == len(self._sorted):
            return -(-num_left // 2)
        share = number * _GOLDEN % 1.0
        length = self._sorted[first + int(share * (len(self._sorted) - first))]
        return min(num_left, length - num_written)


@dataclass(frozen=True, slots=True)
class Demand:
    """What one context of the batch has and will need. `num_left`: tokens that it is expected to write.

    Of its `num_pages` pages, `num_own` will be free when it ends; `num_tokens` counts those that it has now.
    """

    num_tokens: int
    num_left: int
    num_pages: int
    num_own: int


def peak_pages(demands: Sequence[Demand], page_tokens: int) -> float:
    """Return the most pages that the batch will ever hold beyond those that it holds now.

    All contexts write one token per step. It is reached when one ends, so only those moments are looked at; a last
    page is taken to be half full.
    """
    peak = missing = 0.0
    own = sum(demand.num_own for demand in demands)
    for num_alive, demand in enumerate(sorted(demands, key=lambda demand: -demand.num_left), start=1):
        missing += demand.num_tokens / page_tokens + 0.5 - demand.num_pages
        own -= demand.num_own  # of those that end before this one
        peak = max(peak, missing + num_alive * demand.num_left / page_tokens - own)
    return peak

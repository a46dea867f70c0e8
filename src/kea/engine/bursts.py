"""Bursts: several tokens for every context of a step before the engine looks at any of them.

A model that draws tokens itself (`kea.models.base.DrawingDecoder`) goes on to them at once. What the engine would have
done between is done behind: stops are found late, and what was drawn behind one is forgotten, as a wrong guess is. So a
burst is for steps in which nothing else can happen: all contexts only decode, none waits, and each row is drawn from
its logits as they are. Knows no queue, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kea.engine.config import StepLimits
from kea.engine.draft import WorkItem, shape_of
from kea.engine.latency import LatencyModel
from kea.memory import KVMemory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_ROUNDS = 128


def with_drawn(items: Sequence[WorkItem], tokens: NDArray[np.int64]) -> tuple[WorkItem, ...]:
    """Return the items of a burst that drew `tokens` [rounds, R]: all but the last of them were computed, too."""
    guesses = tokens[:-1].T.tolist()
    return tuple(
        replace(item, guesses=tuple(drawn), num_rounds=1, is_sure=True)
        for item, drawn in zip(items, guesses, strict=True)
    )


class BurstPlanner:
    """Chooses how many rounds a step has. Lives as long as the batcher.

    Twice as many as the last step at most: what the first ones took says what more would take.
    """

    def __init__(self, limits: StepLimits, memory: KVMemory, latency: LatencyModel) -> None:
        self._limits = limits
        self._memory = memory
        self._latency = latency
        self._limit_s = min(limits.max_burst_s, limits.tpot_objective_s or limits.max_burst_s)
        self._most = 1

    def plan(self, items: Sequence[WorkItem]) -> tuple[WorkItem, ...]:
        """Return the items of a step in which nothing else happens, with their rounds, and pages for all of them."""
        num_rounds = self._choose(items)
        self._most = min(max(1, 2 * num_rounds), MAX_ROUNDS)
        if num_rounds <= 1:
            return tuple(items)
        for item in items:
            has_room = self._memory.try_reserve(item.context.pages, item.stop + num_rounds - 1)
            assert has_room, "the pages counted as available could not be had"
        return tuple(replace(item, num_rounds=num_rounds) for item in items)

    def interrupt(self) -> None:
        """Note a step that cannot be a burst."""
        self._most = 1

    def _choose(self, items: Sequence[WorkItem]) -> int:
        """Return how many rounds there may be: 0 where the model cannot draw for all of these items."""
        if self._limit_s <= 0.0 or not items:
            return 0
        most = self._in_time(items, self._most)
        if most < self._most and most == 1:
            return 1  # of a slow model, the rows need not be looked at
        for item in items:
            generation = item.context.generation
            if generation is None or not (item.is_decode and generation.is_drawn_plainly) or item.context.wants_scores:
                return 0
            most = min(most, generation.tracker.num_left)
            most = self._memory.chunk_stop(item.context.pages, item.stop + most - 1) - item.stop + 1
        return self._with_pages(items, most)

    def _in_time(self, items: Sequence[WorkItem], most: int) -> int:
        """Return how many rounds, at most `most`, are predicted to end within the limit."""
        if most <= 1:
            return 1
        shape = shape_of(items)
        first_s, all_s = self._latency.predict(shape), self._latency.predict(replace(shape, num_rounds=most))
        if all_s <= self._limit_s:
            return most
        if first_s >= self._limit_s:
            return 1
        return 1 + int((self._limit_s - first_s) * (most - 1) / (all_s - first_s))

    def _with_pages(self, items: Sequence[WorkItem], most: int) -> int:
        """Return how many rounds, at most `most`, there are pages for that no context holds."""
        while most > 1:
            size = self._limits.page_tokens
            tables = ((item.stop + most - 1, len(item.context.pages.pages)) for item in items)
            num_needed = sum(max(0, -(-stop // size) - num_pages) for stop, num_pages in tables)
            if num_needed <= self._memory.num_available:
                return most
            most //= 2
        return most

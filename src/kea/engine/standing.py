"""A batch that stands: contexts that only decode, a row each, from step to step until something else is to be done.

What every step would find again is kept by row, and what nobody looks at between two steps is not written down in each:
how far the contexts are computed follows from their tokens (`Batcher.settle`). Knows no queue, no torch.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kea.engine.base import StepShape
from kea.engine.draft import WorkItem
from kea.memory import PageCopy

if TYPE_CHECKING:
    from kea.engine.penalties import RowState
    from kea.models.base import Decoding


class DecodeBatch:
    """Contexts whose next tokens the model draws by itself, `num_rounds` of each in the step that is planned.

    `num_left`: how many rounds there can be before an output or its visible context ends. `copies`: page copies to
    perform before the first step. `pages`: what the page tables were given since the last one: row, entry, page.
    `decoding`: what the model goes on from; None before the first step, and once a page was replaced. `times`: of steps
    that the latency model has not seen: rounds done before, rounds, seconds. `speculates`: some would have guesses.
    """

    def __init__(self, items: Sequence[WorkItem], num_left: int, page_tokens: int) -> None:
        self.contexts = tuple(item.context for item in items)
        generations = [context.generation for context in self.contexts if context.generation is not None]
        assert len(generations) == len(self.contexts), "a context decodes without a generation"
        self.generation_ids = [generation.generation_id for generation in generations]
        self.speculates = any(generation.lookup is not None for generation in generations)
        self.trackers = [generation.tracker for generation in generations]
        self.lanes = [tracker.lane for tracker in self.trackers]
        self.token_lists = [context.tokens for context in self.contexts]
        self.num_rounds = 1
        self.num_done = 0
        self.num_left = num_left
        self.copies: tuple[PageCopy, ...] = ()
        self.pages: list[tuple[int, int, int]] = []
        self.decoding: Decoding | None = None
        self.times: list[tuple[int, int, float]] = []
        self._kv_tokens = sum(item.stop for item in items)
        self._page_tokens = page_tokens
        self._due = [(self._room(row) - item.start, row) for row, item in enumerate(items)]  # by row: rounds with pages
        heapq.heapify(self._due)

    @property
    def states(self) -> list[RowState]:
        """How the rows' next tokens are drawn."""
        return [context.generation.sampling for context in self.contexts if context.generation is not None]

    @property
    def items(self) -> tuple[WorkItem, ...]:
        """The work of the next round."""
        ends = map(len, self.token_lists)
        return tuple(WorkItem(context, end - 1, end, True) for context, end in zip(self.contexts, ends, strict=True))

    def written(self, row: int) -> WorkItem:
        """Return what the step that is planned writes for a row, before its tokens are taken."""
        start = len(self.token_lists[row]) - 1
        return WorkItem(self.contexts[row], start, start + self.num_rounds, draws=False)

    def shape(self, num_rounds: int, num_done: int | None = None) -> StepShape:
        """Return the shape of a next step of so many rounds, or of one behind `num_done` of them."""
        rows, done = len(self.contexts), self.num_done if num_done is None else num_done
        return StepShape(0, rows, self._kv_tokens + rows * done, num_rounds=num_rounds)

    def num_needed(self, num_rounds: int) -> int:
        """Return how many pages the rows lack for so many further rounds."""
        stop = self.num_done + num_rounds
        return sum(1 + (stop - 1 - done) // self._page_tokens for done, _ in self._due if done < stop)

    def pop_due(self, num_rounds: int) -> int | None:
        """Return a row that lacks a page for so many further rounds, once; None where no other does."""
        if self._due[0][0] >= self.num_done + num_rounds:
            return None
        return heapq.heappop(self._due)[1]

    def push_due(self, row: int) -> None:
        """Note again how far a row's pages reach."""
        start = len(self.token_lists[row]) - 1 - self.num_done
        heapq.heappush(self._due, (self._room(row) - start, row))

    def _room(self, row: int) -> int:
        return len(self.contexts[row].pages.pages) * self._page_tokens

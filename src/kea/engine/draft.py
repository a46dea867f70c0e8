"""A step while it is planned: its items, and how many tokens it may still take. Knows no pages, no queue."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kea.engine.base import StepShape
from kea.engine.config import StepLimits
from kea.engine.latency import LatencyModel
from kea.engine.state import ContextState
from kea.memory import PageCopy

MIN_SHARE = 8


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One context's part of a step: compute its tokens [start, stop), and behind them the guesses of the next ones.

    `draws`: the logits of the row of `stop` - 1 draw a token; if that is the first guess, those of its row draw the
    next one, and so on.
    """

    context: ContextState
    start: int
    stop: int
    draws: bool
    guesses: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """The position behind the last one that is computed."""
        return self.stop + len(self.guesses)

    @property
    def is_decode(self) -> bool:
        """Whether it is one token, from which the next one is drawn."""
        return self.draws and self.stop - self.start == 1 and not self.guesses

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start + len(self.guesses)


@dataclass(frozen=True, slots=True)
class StepWork:
    """A step: page copies to perform first, in order, then the items."""

    copies: tuple[PageCopy, ...]
    items: tuple[WorkItem, ...]

    @property
    def num_rounds(self) -> int:
        return 1

    @property
    def shape(self) -> StepShape:
        return shape_of(self.items)

    @property
    def speculates(self) -> bool:
        """Whether all of it is decoding, and some of these contexts would have guesses."""
        generations = [item.context.generation for item in self.items if item.draws and item.stop - item.start == 1]
        return len(generations) == len(self.items) and any(one and one.lookup is not None for one in generations)


def shape_of(items: Iterable[WorkItem]) -> StepShape:
    """Count what the step's time depends on. A chunk of one token, or a guess, costs what a decoding context does, and
    counts so.
    """
    prefill_tokens = num_sequences = kv_tokens = 0
    pairs = 0.0
    for item in items:
        length = item.stop - item.start
        num_sequences += 1 + len(item.guesses)
        kv_tokens += item.stop
        if item.guesses:
            kv_tokens += sum(range(item.stop + 1, item.stop + len(item.guesses) + 1))
        if length > 1:
            prefill_tokens += length
            pairs += length * item.start + length * (length + 1) / 2  # each token sees itself and all before it
    return StepShape(prefill_tokens, num_sequences, kv_tokens, pairs)


class Draft:
    """The items of a step by context, and its budget. Lives for one plan.

    With an objective, chunks are sized so that a step that also decodes is predicted to stay below it; the first chunk
    gets at least a page, so that prefill goes on however late the step is.
    """

    def __init__(self, limits: StepLimits, latency: LatencyModel) -> None:
        self._limits = limits
        self._latency = latency
        self.items: dict[int, WorkItem] = {}
        self.budget = limits.max_num_batched_tokens
        self.num_decodes = 0

    @property
    def objective_s(self) -> float | None:
        """What a step that decodes should stay below, in seconds."""
        return self._limits.tpot_objective_s

    @property
    def share(self) -> int:
        """What one chunk may take while others may want some too: half of what is left, but no crumbs."""
        least = max(1, self._limits.max_num_batched_tokens // MIN_SHARE)
        return min(self.budget, max(self.budget // 2, least))

    def put(self, item: WorkItem) -> None:
        """Plan an item, in place of the context's other one."""
        if item.context.context_id in self.items:
            self.remove(item.context)
        self.items[item.context.context_id] = item
        self.budget -= item.num_tokens

    def remove(self, context: ContextState) -> None:
        """Take a context's item out of the step, if it has one."""
        item = self.items.pop(context.context_id, None)
        if item is not None:
            self.budget += item.num_tokens

    def room(self, context: ContextState, most: int) -> int:
        """Return how many tokens, at most `most`, the context's chunk may have under the latency objective."""
        objective = self._limits.tpot_objective_s
        if objective is None or self.num_decodes == 0:
            return most
        others = [item for item in self.items.values() if item.context is not context]
        objective /= self._latency.margin
        room = self._latency.max_prefill_tokens(shape_of(others), objective, context.start)
        is_first = len(others) <= self.num_decodes
        return min(most, max(room, self._limits.page_tokens if is_first else 0))

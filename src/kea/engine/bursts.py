"""Bursts: several tokens for every context of a step before the engine looks at any of them.

A model that draws tokens itself (`kea.models.base.DrawingDecoder`) goes on to them at once. What the engine would have
done between is done behind: stops are found late, and what was drawn behind one is forgotten. So a burst is for steps
in which nothing else can happen: all contexts only decode, none waits, and each row is drawn from its logits as they
are. Such a batch stands: its next step follows from the last one, be it of one round or of several. Knows no queue, no
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kea.engine.config import StepLimits
from kea.engine.draft import WorkItem
from kea.engine.latency import LatencyModel
from kea.engine.standing import DecodeBatch
from kea.engine.state import ContextState
from kea.memory import KVMemory

MAX_ROUNDS = 128
KEPT_STEPS = 8
"""For so many steps, a number of rounds that time has bounded is kept, and what single rounds took is put off."""


class BurstPlanner:
    """Makes batches that stand, and chooses how many rounds each of their steps has. Lives as long as the batcher.

    Twice as many as the last step at most: what the first ones took says what more would take. After a step that took
    too long, as many as would not have: the latency model believes that the cores became slower only after some steps,
    and who comes meanwhile would wait for each. `settle` writes back how far a context of such a batch is.
    """

    def __init__(
        self, limits: StepLimits, memory: KVMemory, latency: LatencyModel, settle: Callable[[ContextState], None]
    ) -> None:
        self._limits = limits
        self._memory = memory
        self._latency = latency
        self._settle = settle
        self._limit_s = min(limits.max_burst_s, limits.tpot_objective_s or limits.max_burst_s)
        self._most = 1
        self._num_kept = 0  # steps for which the last choice still stands
        self._times: list[float] = []

    def form(self, items: Sequence[WorkItem], *, is_alone: bool, stretch: int = 0) -> DecodeBatch | None:
        """Return the batch of a step in which nothing else happens; None where the model cannot draw for all items.

        `is_alone`: no context waits, so that a step may have several rounds. `stretch`: for so many rounds contexts
        that speculate may go without guesses.
        """
        num_left = self._count_left(items, stretch)
        if num_left == 0 or not is_alone:
            self._most = 1
        if num_left == 0:
            return None
        batch = DecodeBatch(items, num_left, self._limits.page_tokens)
        self._num_kept = 0
        has_pages = self._go_on(batch, is_alone=is_alone)
        assert has_pages, "the pages of a planned step are missing"
        return batch

    def try_go_on(self, batch: DecodeBatch, *, is_alone: bool) -> bool:
        """Plan a batch's next step, with pages for all of its rounds; False where it has no more, or pages lack."""
        return batch.num_done < batch.num_left and self._go_on(batch, is_alone=is_alone)

    def interrupt(self) -> None:
        """Note a step that cannot be a burst."""
        self._most = 1

    def observe(self, batch: DecodeBatch, seconds: float) -> None:
        """Note what the step took that was planned, before its rounds count as done."""
        batch.times.append((batch.num_done, batch.num_rounds, seconds))
        if batch.num_rounds > 1 or len(batch.times) >= KEPT_STEPS:
            self.learn(batch)
        if batch.num_rounds > 1 and seconds > self._limit_s:
            self._num_kept = 0
            self._most = max(1, int(batch.num_rounds * self._limit_s / seconds))

    def learn(self, batch: DecodeBatch) -> None:
        """Tell the latency model what a batch's steps took."""
        for num_done, num_rounds, seconds in batch.times:
            self._latency.observe(batch.shape(num_rounds, num_done), seconds)
        batch.times.clear()

    def _count_left(self, items: Sequence[WorkItem], stretch: int) -> int:
        """Return how many rounds there can be; 0 where the model cannot draw for all of these items."""
        most = self._limits.max_model_len if self._limits.can_draw and items else 0
        for item in items:
            generation = item.context.generation
            if generation is None or not (item.is_decode and generation.is_drawn_plainly) or item.context.wants_scores:
                return 0
            if generation.lookup is not None:
                most = min(most, stretch)
            if most == 0:
                return 0
            most = min(most, generation.tracker.num_left)
            most = self._memory.chunk_stop(item.context.pages, item.stop + most - 1) - item.stop + 1
        return most

    def _go_on(self, batch: DecodeBatch, *, is_alone: bool) -> bool:
        if self._num_kept > 0 and is_alone:
            self._num_kept -= 1
            num_rounds = min(batch.num_rounds, batch.num_left - batch.num_done)
        else:
            num_rounds = self._choose(batch) if is_alone else 1
        num_rounds = self._with_pages(batch, num_rounds)
        while (row := batch.pop_due(num_rounds)) is not None:
            if not self._extend(batch, row, num_rounds):
                return False
        batch.num_rounds = num_rounds
        self._most = min(2 * num_rounds, MAX_ROUNDS) if is_alone else 1
        return True

    def _extend(self, batch: DecodeBatch, row: int, num_rounds: int) -> bool:
        """Let a row's full pages enter the prefix tree, get those of its next rounds; False where there are none."""
        context = batch.contexts[row]
        pages = context.pages
        self._settle(context)
        num_held = len(pages.pages)
        if not self._memory.try_reserve(pages, len(context.tokens) + num_rounds - 1):
            return False
        batch.pages += [(row, index, pages.pages[index]) for index in range(num_held, len(pages.pages))]
        batch.push_due(row)
        return True

    def _choose(self, batch: DecodeBatch) -> int:
        """Return how many rounds the next step has, for all that time and the outputs' lengths say."""
        most = min(self._most, batch.num_left - batch.num_done)
        if self._limit_s <= 0.0 or most <= 1:
            return 1
        self.learn(batch)
        chosen = self._in_time(batch, most)
        if chosen < most:
            self._num_kept = KEPT_STEPS
        return chosen

    def _in_time(self, batch: DecodeBatch, most: int) -> int:
        """Return how many rounds, at most `most`, are predicted to end within the limit."""
        first_s, all_s = self._latency.predict(batch.shape(1)), self._latency.predict(batch.shape(most))
        if all_s <= self._limit_s:
            return most
        if first_s >= self._limit_s:
            return 1
        return 1 + int((self._limit_s - first_s) * (most - 1) / (all_s - first_s))

    def _with_pages(self, batch: DecodeBatch, most: int) -> int:
        """Return how many rounds, at most `most`, there are pages for that no context holds."""
        while most > 1 and batch.num_needed(most) > self._memory.num_available:
            most //= 2
        return most

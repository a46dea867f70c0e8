"""The batcher: what each step computes. Owns the waiting queue, the batch and preemption; knows no torch, no programs.

Continuous batching with chunked prefill: every running context gets the tokens it lacks, decoding contexts (one token)
first, then prefill chunks, until the step's token budget is spent. Within a priority a chunk takes half of what is left
(what remains in the end goes to the first ones), so that a long prompt does not hold up the short ones behind it. A
context enters the batch when the pages of all its tokens can be had, and the batch with it is expected to find those of
its outputs, too (`kea.engine.forecast`). When a running context cannot get a page, contexts that rest give theirs back,
then the last-ranked running context is preempted: its full pages stay in the prefix tree,
and it computes again what was lost.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

from kea.engine.bursts import BurstPlanner
from kea.engine.config import StepLimits
from kea.engine.draft import Draft, StepWork, WorkItem
from kea.engine.forecast import Demand, OutputLengths, peak_pages
from kea.engine.guessing import STRETCH, Guesser
from kea.engine.latency import NO_LIMIT, LatencyModel
from kea.engine.queue import WaitingQueue
from kea.engine.standing import DecodeBatch
from kea.engine.state import ContextState, Phase
from kea.memory import KVMemory, PageCopy

__all__ = ["Batcher", "StepWork", "WorkItem"]

MAX_SCORED_TOKENS = 256  # of a chunk whose every row gives logits: each row is as wide as the vocabulary


class Batcher:
    """Plans steps over the contexts that have something to compute. Lives as long as its engine."""

    def __init__(self, limits: StepLimits, memory: KVMemory, latency: LatencyModel) -> None:
        self._limits = limits
        self._memory = memory
        self._latency = latency
        self._waiting = WaitingQueue()
        self._running: list[ContextState] = []  # by rank
        self._resting: dict[int, ContextState] = {}  # idle or waiting, but holding pages; oldest first
        self._copies: list[PageCopy] = []
        self._guesser = Guesser(memory, latency)
        self._bursts = BurstPlanner(limits, memory, latency, self.settle_context)
        self._standing: DecodeBatch | None = None
        self._is_ahead = False  # while a step is planned behind one that has not landed
        self._has_to_land = False
        self.lengths = OutputLengths()
        self.num_preemptions = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def order(self, copies: Iterable[PageCopy]) -> None:
        """Perform these page copies before anything else of the next step."""
        self._dissolve()
        self._copies.extend(copies)

    def wake(self, context: ContextState) -> None:
        """Consider a context whose tokens or generation changed: it waits for the batch if it has anything to
        compute.
        """
        self._dissolve()
        if context.phase is Phase.IDLE:
            self._rest(context)
            if context.num_pending > 0:
                context.move(Phase.WAITING)
                self._waiting.push(context)
        elif context.num_pending <= 0 and not context.num_flying:
            self.retire(context)

    def retire(self, context: ContextState) -> None:
        """Take a context out of the batch or the queue; it keeps its pages as long as nobody needs them."""
        self._dissolve()
        self._leave(context)
        if context.phase in (Phase.WAITING, Phase.RUNNING):
            context.move(Phase.IDLE)
        self._rest(context)

    def forget(self, context: ContextState) -> None:
        """End a context: out of the batch, its pages given back."""
        self._dissolve()
        self._leave(context)
        self._resting.pop(context.context_id, None)
        context.move(Phase.CLOSED)
        self._memory.free(context.pages)

    def try_plan_ahead(self) -> StepWork | None:
        """Return the step behind one that has not landed; None where that has to land first: where what is drawn next
        depends on a token that is not known yet, or a running context would have to make room.
        """
        if not all(self._goes_on(context) for context in self._running if context.num_flying):
            return None
        self._is_ahead, self._has_to_land = True, False
        work = self.plan()
        self._is_ahead = False
        assert isinstance(work, StepWork), "a batch stands while steps overlap"
        if not self._has_to_land:
            return work
        self._copies = [*work.copies, *self._copies]
        return None

    def plan(self) -> StepWork | DecodeBatch:
        """Return the next step (without items when there is nothing to do). Every context in it has its pages.

        Where contexts go on to decode and nothing else happens, it is the batch of the step before.
        """
        if self._standing is not None:
            if self._bursts.try_go_on(self._standing, is_alone=not len(self._waiting)):
                return self._standing
            self._dissolve()
        self._memory.begin_step([context.pages for context in self._running if context.num_flying])
        draft = Draft(self._limits, self._latency)
        self._plan_decodes(draft)
        stretch = STRETCH if self._guesser.plan(draft, len(self._running)) else 0
        prefilling = [c for c in self._running if c.context_id not in draft.items and not _is_done_flying(c)]
        may_admit = True
        for priority in sorted({context.spec.priority for context in prefilling} | self._waiting.priorities):
            for context in prefilling:
                if context.spec.priority == priority and context.phase is Phase.RUNNING:
                    self._plan_chunk(context, draft, draft.share)
            may_admit = may_admit and self._admit(draft, priority)
            self._top_up(draft)
        items = tuple(draft.items.values())
        copies, self._copies = tuple(self._copies), []
        is_alone = not len(self._waiting)
        if len(items) < len(self._running) or not (is_alone or len(items) == self._limits.max_num_seqs):
            self._bursts.interrupt()
        else:
            self._standing = self._bursts.form(items, is_alone=is_alone, stretch=stretch)
        if self._standing is None:
            return StepWork(copies, items)
        self._standing.copies = copies
        return self._standing

    def settle(self) -> None:
        """Write down how far the contexts of a batch that stands are, for whoever looks at them between two steps."""
        if self._standing is not None:
            for context in self._standing.contexts:
                self.settle_context(context)
            self._bursts.learn(self._standing)

    def settle_context(self, context: ContextState) -> None:
        """Do so for one of them: but for the last, all of its tokens are computed, each drawn from the one before."""
        start, stop = context.pages.num_computed, len(context.tokens) - 1
        if context.generation is not None and start < stop:
            self.complete(WorkItem(context, start, stop, draws=False))
            context.generation.sampling.note_drawn(stop - start)

    def advance(self, batch: DecodeBatch, seconds: float) -> None:
        """Note that the step of a batch was computed and its tokens were taken, and how long that took."""
        self._bursts.observe(batch, seconds)
        if batch.speculates:
            num_contexts = len(batch.contexts)
            self._guesser.observe(num_contexts, batch.num_rounds * num_contexts, seconds)
        batch.num_done += batch.num_rounds
        batch.copies = ()

    def note_decoded(self, num_contexts: int, num_tokens: int, seconds: float) -> None:
        """Note what a step took that only decoded so many tokens of contexts, some of which speculate."""
        self._guesser.observe(num_contexts, num_tokens, seconds)

    def complete(self, item: WorkItem) -> None:
        """Record that an item was computed: its full pages enter the prefix tree."""
        context, standing = item.context, self._standing
        table = context.pages.table if standing is not None else ()
        self._memory.commit(context.pages, context.tokens, item.stop)
        if standing is not None and context.pages.table is not table:
            standing.decoding = None  # a page was replaced by one of the tree: the model has the old one
        context.note_computed(item.start, item.stop)
        if context.num_flying:
            self._memory.claim(context.pages, context.tokens)  # it computes the next page already
        self._waiting.charge(context.spec.tenant, item.stop - item.start)

    def check(self, contexts: Sequence[ContextState]) -> None:
        """Raise `AssertionError` unless every context is exactly where its phase says."""
        running = {id(context) for context in self._running}
        waiting = {id(c) for priority in self._waiting.priorities for c in self._waiting.in_order(priority)}
        assert self._running == sorted(self._running, key=_rank), "the batch is out of order"
        for context in contexts:
            assert (id(context) in running) == (context.phase is Phase.RUNNING), f"{context.context_id}: batch"
            assert (id(context) in waiting) == (context.phase is Phase.WAITING), f"{context.context_id}: queue"
            holds = context.pages.num_pages > 0 and context.phase is not Phase.RUNNING
            assert not holds or context.context_id in self._resting, f"{context.context_id}: pages nobody can take back"

    # Planning

    def _goes_on(self, context: ContextState) -> bool:
        """Whether a context in a step that has not landed can be in another one: what is drawn depends on no token
        before it but through the model, and nothing is about to be hidden from it.
        """
        generation = context.generation
        if generation is not None and context.num_unknown and not generation.is_independent:
            return False
        is_settled = self._memory.chunk_stop(context.pages, NO_LIMIT) == NO_LIMIT
        return is_settled and not context.wants_scores

    def _plan_decodes(self, draft: Draft) -> None:
        for context in [c for c in self._running if c.generation is not None and c.num_pending == 1]:
            if draft.budget <= 0:
                break
            if context.phase is Phase.RUNNING:
                self._plan_item(context, draft, context.start + 1)
        draft.num_decodes = len(draft.items)

    def _plan_chunk(self, context: ContextState, draft: Draft, most: int) -> None:
        """Plan a running context's next chunk of at most `most` tokens, in place of the one it has in this step."""
        if most <= 0 or not self._find_prefix(context):
            return
        if context.num_pending <= 0:
            self.retire(context)  # the prefix tree had all that was wanted
            return
        start = context.start
        if context.wants_scores:
            most = min(most, MAX_SCORED_TOKENS)
        most = draft.room(context, most)
        if most > 0:
            stop = min(context.goal, start + most)
            self._plan_item(context, draft, self._memory.chunk_stop(context.pages, stop))

    def _plan_item(self, context: ContextState, draft: Draft, stop: int) -> None:
        """Plan a running context's tokens below `stop`, unless it is the one that has to make room for them."""
        while not self._memory.try_reserve(context.pages, stop):
            if self._is_ahead and not self._resting:
                self._has_to_land = True
                return
            victim = self._make_room(context)
            if victim is not None:
                draft.remove(victim)
            if victim is context:
                return
        draws = context.generation is not None and stop == context.goal
        draft.put(WorkItem(context, context.start, stop, draws))

    def _top_up(self, draft: Draft) -> None:
        """Give what is left of the budget to the chunks of the step, the first one first."""
        for item in list(draft.items.values()):
            if draft.budget <= 0:
                return
            is_chunk = item.stop < item.context.goal and item.context.context_id in draft.items
            if is_chunk and item.context.phase is Phase.RUNNING:
                self._plan_chunk(item.context, draft, item.stop - item.start + draft.budget)

    def _find_prefix(self, context: ContextState) -> bool:
        """Extend a context from the prefix tree; False if another context of this step computes its next page."""
        pages, tokens = context.pages, context.tokens
        if context.wants_scores or context.num_flying:
            return True
        if context.num_pending > 1:
            match = self._memory.match(pages, tokens, len(tokens) - 1)
            self.order(match.copies)
        return not self._memory.claim(pages, tokens)

    def _admit(self, draft: Draft, priority: int) -> bool:
        """Let contexts of a priority into the batch; False once one has to wait for a place: none passes it."""
        for context in self._waiting.in_order(priority):
            if draft.budget <= 0:
                return False
            is_free_to_run = self._find_prefix(context)
            self._rest(context)
            if context.num_pending <= 0:
                self.retire(context)
                continue
            if not is_free_to_run:
                continue
            while not self._has_place(context):
                if not self._yield_place(context, draft):
                    return False
            self._waiting.take(context)
            context.move(Phase.RUNNING)
            bisect.insort(self._running, context, key=_rank)
            self._resting.pop(context.context_id, None)
            self._plan_chunk(context, draft, draft.share)
        return True

    def _has_place(self, context: ContextState) -> bool:
        if len(self._running) >= self._limits.max_num_seqs:
            return False
        num_needed = -(-len(context.tokens) // self._limits.page_tokens) - len(context.pages.pages)
        return num_needed <= self._memory.num_available and (not self._running or self._can_grow(context))

    def _can_grow(self, context: ContextState) -> bool:
        """Whether the batch with this context in it is expected to find all the pages that it will need."""
        demands = [self._demand(other) for other in (*self._running, context)]
        num_resting = sum(self._memory.num_own(other.pages) for other in self._resting.values() if other is not context)
        return peak_pages(demands, self._limits.page_tokens) <= self._memory.num_available + num_resting

    def _demand(self, context: ContextState) -> Demand:
        tracker = context.generation.tracker if context.generation is not None else None
        num_left = 0
        if tracker is not None:
            num_left = self.lengths.expect_left(tracker.num_tokens, tracker.num_left, context.arrival)
        pages = context.pages
        return Demand(len(context.tokens), num_left, len(pages.pages), self._memory.num_own(pages))

    # Making room

    def _make_room(self, context: ContextState) -> ContextState | None:
        """Give back somebody's pages: a resting context's (None), else those of the last-ranked running context."""
        if self._release_resting(context):
            return None
        victim = self._running[-1]
        self._preempt(victim)
        return victim

    def _yield_place(self, context: ContextState, draft: Draft) -> bool:
        """Make a place for a waiting context out of resting contexts, or of running ones of a later priority."""
        if len(self._running) < self._limits.max_num_seqs and self._release_resting(context):
            return True
        if not self._running or self._running[-1].spec.priority <= context.spec.priority:
            return False
        if self._is_ahead:
            self._has_to_land = True
            return False
        victim = self._running[-1]
        draft.remove(victim)
        self._preempt(victim)
        return True

    def _release_resting(self, besides: ContextState) -> bool:
        other = next((context_id for context_id in self._resting if context_id != besides.context_id), None)
        if other is None:
            return False
        self._memory.release(self._resting.pop(other).pages)
        return True

    def _preempt(self, context: ContextState) -> None:
        self._running.remove(context)
        self._memory.release(context.pages)
        context.move(Phase.WAITING)
        self._waiting.push(context)
        self.num_preemptions += 1
        if context.generation is not None:
            context.generation.num_preemptions += 1

    def _rest(self, context: ContextState) -> None:
        if context.pages.pages:
            self._resting[context.context_id] = context

    def _dissolve(self) -> None:
        """End the batch that stands: something else is to be done."""
        self.settle()
        self._standing = None

    def _leave(self, context: ContextState) -> None:
        if context.phase is Phase.WAITING:
            self._waiting.remove(context)
        elif context.phase is Phase.RUNNING:
            self._running.remove(context)


def _is_done_flying(context: ContextState) -> bool:
    """Whether nothing is left to compute of a context before its step has landed."""
    return context.num_flying > 0 and context.num_pending <= 0


def _rank(context: ContextState) -> tuple[int, float, int]:
    return context.rank

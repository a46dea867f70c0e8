"""The batcher: what each step computes. Owns the waiting queue, the batch and preemption; knows no torch, no programs.

Continuous batching with chunked prefill: every running context gets the tokens it lacks, decoding contexts (one token)
first, then prefill chunks in order, until the step's token budget is spent. A context enters the batch when the pages
of all its tokens can be had. When a running context cannot get a page, contexts that rest give theirs back, then the
last-ranked running context is preempted: its full pages stay in the prefix tree, and it computes again what was lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kea.engine.base import StepShape
from kea.engine.config import StepLimits
from kea.engine.latency import LatencyModel
from kea.engine.queue import WaitingQueue
from kea.engine.state import ContextState, Phase
from kea.memory import KVMemory, PageCopy


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One context's part of a step: compute its tokens [start, stop). `draws`: the last row's logits draw a token."""

    context: ContextState
    start: int
    stop: int
    draws: bool


@dataclass(frozen=True, slots=True)
class StepWork:
    """A step: page copies to perform first, in order, then the items."""

    copies: tuple[PageCopy, ...]
    items: tuple[WorkItem, ...]

    @property
    def shape(self) -> StepShape:
        chunks = [item for item in self.items if item.stop - item.start > 1]
        return StepShape(
            prefill_tokens=sum(item.stop - item.start for item in chunks),
            num_sequences=len(self.items),
            kv_tokens=sum(item.stop for item in self.items),
            prefill_pairs=sum(_num_pairs(item.start, item.stop) for item in chunks),
        )


def _num_pairs(start: int, stop: int) -> float:
    """Return the query-key pairs of a chunk: each token sees itself and all before it."""
    length = stop - start
    return length * start + length * (length + 1) / 2


class Batcher:
    """Plans steps over the contexts that have something to compute. Lives as long as its engine."""

    def __init__(self, limits: StepLimits, memory: KVMemory, latency: LatencyModel) -> None:
        self._limits = limits
        self._memory = memory
        self._latency = latency
        self._waiting = WaitingQueue()
        self._running: list[ContextState] = []
        self._resting: dict[int, ContextState] = {}  # idle or waiting, but holding pages; oldest first
        self._copies: list[PageCopy] = []
        self.num_preemptions = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def order(self, copies: Iterable[PageCopy]) -> None:
        """Perform these page copies before anything else of the next step."""
        self._copies.extend(copies)

    def wake(self, context: ContextState) -> None:
        """Consider a context whose tokens or generation changed: it waits for the batch if it has anything to
        compute.
        """
        if context.phase is Phase.IDLE:
            self._rest(context)
            if context.num_pending > 0:
                context.move(Phase.WAITING)
                self._waiting.push(context)
        elif context.num_pending <= 0:
            self.retire(context)

    def retire(self, context: ContextState) -> None:
        """Take a context out of the batch or the queue; it keeps its pages as long as nobody needs them."""
        self._leave(context)
        if context.phase in (Phase.WAITING, Phase.RUNNING):
            context.move(Phase.IDLE)
        self._rest(context)

    def forget(self, context: ContextState) -> None:
        """End a context: out of the batch, its pages given back."""
        self._leave(context)
        self._resting.pop(context.context_id, None)
        context.move(Phase.CLOSED)
        self._memory.free(context.pages)

    def plan(self) -> StepWork:
        """Return the next step (without items when there is nothing to do). Every context in it has its pages."""
        self._memory.begin_step()
        items: dict[int, WorkItem] = {}
        budget = self._plan_decodes(items)
        for context in sorted((c for c in self._running if c.context_id not in items), key=lambda c: c.rank):
            if context.phase is Phase.RUNNING:
                budget -= self._plan_prefill(context, items, budget)
        self._admit(items, budget)
        copies, self._copies = tuple(self._copies), []
        return StepWork(copies, tuple(items.values()))

    def complete(self, item: WorkItem) -> None:
        """Record that an item was computed: its full pages enter the prefix tree."""
        context = item.context
        self._memory.commit(context.pages, context.tokens, item.stop)
        self._waiting.charge(context.spec.tenant, item.stop - item.start)

    def check(self, contexts: Sequence[ContextState]) -> None:
        """Raise `AssertionError` unless every context is exactly where its phase says."""
        running = {id(context) for context in self._running}
        waiting = {id(context) for context in self._waiting.in_order()}
        for context in contexts:
            assert (id(context) in running) == (context.phase is Phase.RUNNING), f"{context.context_id}: batch"
            assert (id(context) in waiting) == (context.phase is Phase.WAITING), f"{context.context_id}: queue"
            holds = context.pages.num_pages > 0 and context.phase is not Phase.RUNNING
            assert not holds or context.context_id in self._resting, f"{context.context_id}: pages nobody can take back"

    # Planning

    def _plan_decodes(self, items: dict[int, WorkItem]) -> int:
        decoding = sorted((c for c in self._running if c.num_pending == 1 and c.generation), key=lambda c: c.rank)
        budget = self._limits.max_num_batched_tokens
        for context in decoding:
            if budget > 0 and context.phase is Phase.RUNNING:
                budget -= self._plan_prefill(context, items, 1)
        return min(budget, self._prefill_room(items))

    def _prefill_room(self, items: dict[int, WorkItem]) -> int:
        objective = self._limits.tpot_objective_s
        if objective is None or not items:
            return self._limits.max_num_batched_tokens
        shape = StepShape(0, len(items), sum(item.stop for item in items.values()))
        return max(self._limits.page_tokens, self._latency.max_prefill_tokens(shape, objective))

    def _plan_prefill(self, context: ContextState, items: dict[int, WorkItem], budget: int) -> int:
        """Plan a running context's next chunk of at most `budget` tokens; return the tokens planned."""
        if budget <= 0 or not self._find_prefix(context):
            return 0
        if context.num_pending <= 0:
            self.retire(context)  # the prefix tree had all that was wanted
            return 0
        start = context.pages.num_computed
        stop = self._memory.chunk_stop(context.pages, min(context.goal, start + budget))
        while not self._memory.try_reserve(context.pages, stop):
            victim = self._make_room(context)
            if victim is not None:
                items.pop(victim.context_id, None)
            if victim is context:
                return 0
        draws = context.generation is not None and stop == len(context.tokens)
        items[context.context_id] = WorkItem(context, start, stop, draws)
        return stop - start

    def _find_prefix(self, context: ContextState) -> bool:
        """Extend a context from the prefix tree; False if another context of this step computes its next page."""
        pages, tokens = context.pages, context.tokens
        if context.spec.prompt_logprobs is not None:
            return True
        if context.num_pending > 1:
            match = self._memory.match(pages, tokens, len(tokens) - 1)
            self.order(match.copies)
            if context.generation is not None and not context.generation.num_preemptions:
                context.generation.cached_tokens += match.num_tokens
        return not self._memory.claim(pages, tokens)

    def _admit(self, items: dict[int, WorkItem], budget: int) -> None:
        for context in self._waiting.in_order():
            if budget <= 0:
                return
            is_free_to_run = self._find_prefix(context)
            self._rest(context)
            if context.num_pending <= 0:
                self.retire(context)
                continue
            if not is_free_to_run:
                continue
            while not self._has_place(context):
                if not self._yield_place(context, items):
                    return
            self._waiting.remove(context)
            context.move(Phase.RUNNING)
            self._running.append(context)
            self._resting.pop(context.context_id, None)
            budget -= self._plan_prefill(context, items, budget)

    def _has_place(self, context: ContextState) -> bool:
        if len(self._running) >= self._limits.max_num_seqs:
            return False
        num_needed = -(-len(context.tokens) // self._limits.page_tokens) - len(context.pages.pages)
        return num_needed <= self._memory.num_available

    # Making room

    def _make_room(self, context: ContextState) -> ContextState | None:
        """Give back somebody's pages: a resting context's (None), else those of the last-ranked running context."""
        if self._release_resting(context):
            return None
        victim = max(self._running, key=lambda c: c.rank)
        self._preempt(victim)
        return victim

    def _yield_place(self, context: ContextState, items: dict[int, WorkItem]) -> bool:
        """Make a place for a waiting context out of resting contexts, or of running ones of a later priority."""
        if len(self._running) < self._limits.max_num_seqs and self._release_resting(context):
            return True
        victim = max(self._running, key=lambda c: c.rank, default=None)
        if victim is None or victim.spec.priority <= context.spec.priority:
            return False
        items.pop(victim.context_id, None)
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

    def _leave(self, context: ContextState) -> None:
        if context.phase is Phase.WAITING:
            self._waiting.remove(context)
        elif context.phase is Phase.RUNNING:
            self._running.remove(context)

"""Random operations on the KV memory against the slow oracle, with `check()` after each."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kea.memory import KVMemory, MemoryConfig, MemorySnapshot
from tests.memory.oracle import FakeKV, Shadow, check_content, tree_paths

# Three texts that part at different places, so that contexts meet in the tree, also in the middle of a page.
TEXTS = ([1, 2, 3, 4, 5] * 20, [1, 2, 3, 4, 5] * 2 + [6] * 90, [1, 2, 3, 9] + [7, 8] * 48)
MAX_LEN = 48

picks = st.integers(0, 99)
lengths = st.integers(0, MAX_LEN)


class MemoryMachine(RuleBasedStateMachine):
    """Contexts that are filled, forked, cut, dropped, preempted and freed as a batcher might."""

    @initialize(num_slots=st.sampled_from([96, 64, 32, 16]), page_tokens=st.sampled_from([4, 1, 2, 16]))
    def start(self, num_slots: int, page_tokens: int) -> None:
        num_pages = num_slots // page_tokens
        self.memory = KVMemory(MemoryConfig(num_pages, page_tokens))
        self.kv = FakeKV(num_pages, page_tokens)
        self.page_tokens = page_tokens
        self.shadows: list[Shadow] = []
        for text in TEXTS:
            self.open("a", text, MAX_LEN)

    def pick(self, number: int) -> Shadow:
        return self.shadows[number % len(self.shadows)]

    @rule(salt=st.sampled_from(["a", "a", b"b"]), text=st.sampled_from(TEXTS), length=lengths)
    def open(self, salt: str | bytes, text: list[int], length: int) -> None:
        if len(self.shadows) < 6:
            self.shadows.append(Shadow(self.memory.open(salt), text[:length]))

    @precondition(lambda self: self.shadows)
    @rule(pick=picks, text=st.sampled_from(TEXTS), num_tokens=st.integers(1, 20))
    def append(self, pick: int, text: list[int], num_tokens: int) -> None:
        tokens = self.pick(pick).tokens
        tokens.extend(text[len(tokens) : min(len(tokens) + num_tokens, MAX_LEN)])

    @precondition(lambda self: self.shadows)
    @rule(pick=picks, num_tokens=st.sampled_from([MAX_LEN, 16, 8, 7, 5, 3, 1]), is_matched=st.booleans())
    def compute(self, pick: int, num_tokens: int, is_matched: bool) -> None:
        shadow = self.pick(pick)
        ctx = shadow.ctx
        if is_matched:
            self.match(pick)
        stop = self.memory.chunk_stop(ctx, min(ctx.num_computed + num_tokens, len(shadow.tokens)))
        if stop <= ctx.num_computed or not self.try_reserve(shadow, stop):
            return
        self.kv.forward(self.memory, shadow, stop)
        self.memory.commit(ctx, shadow.tokens, stop)
        assert ctx.num_computed == shadow.skip(stop)
        shadow.claim = None
        shadow.note_progress()

    @precondition(lambda self: self.shadows)
    @rule(pick=picks)
    def match(self, pick: int) -> None:
        shadow = self.pick(pick)
        ctx = shadow.ctx
        before, num_free = ctx.num_computed, self.memory.snapshot().num_free
        limit = min(len(shadow.tokens) - 1, shadow.clean_len)
        best = max(before, self.longest_cached(shadow, limit)) if limit > before else before
        result = self.memory.match(ctx, shadow.tokens, len(shadow.tokens) - 1)
        self.kv.order(result.copies)
        found = before + result.num_tokens
        full = max(before, best // self.page_tokens * self.page_tokens)
        assert found in {full, best}
        assert found == best or not num_free, "a free page was there for the copy"
        assert len(result.copies) == (found > full)
        if result.num_tokens:
            assert ctx.num_computed == shadow.skip(found)
            shadow.claim = None
        shadow.note_progress()

    def longest_cached(self, shadow: Shadow, limit: int) -> int:
        """Search the whole tree for the longest prefix of the context's tokens."""
        best = 0
        for salt, tokens, _ in tree_paths(self.memory):
            pairs = zip(tokens, shadow.tokens[:limit], strict=False)
            common = next((idx for idx, (a, b) in enumerate(pairs) if a != b), min(len(tokens), limit))
            best = max(best, common if salt == shadow.ctx.salt else 0)
        return best

    @precondition(lambda self: self.shadows)
    @rule(pick=picks, length=lengths)
    def reserve(self, pick: int, length: int) -> None:
        self.try_reserve(self.pick(pick), length)

    def try_reserve(self, shadow: Shadow, length: int) -> bool:
        ctx, size = shadow.ctx, self.page_tokens
        wanted = 0
        for idx in range(ctx.num_computed // size, -(-length // size)):
            is_there = idx < len(ctx.pages) and ctx.pages[idx] >= 0
            is_needed = any(not shadow.is_hidden_now(p) for p in range(idx * size, (idx + 1) * size))
            wanted += is_needed and not is_there
        before, pages = self.memory.snapshot(), list(ctx.pages)
        is_reserved = self.memory.try_reserve(ctx, length)
        assert is_reserved == (wanted <= before.num_free + before.num_cached)
        if not is_reserved:
            assert self.memory.snapshot() == before
            assert ctx.pages == pages
            shadow.claim = None
        return is_reserved

    @precondition(lambda self: self.shadows)
    @rule(pick=picks)
    def claim(self, pick: int) -> None:
        shadow = self.pick(pick)
        stop = (shadow.ctx.num_computed // self.page_tokens + 1) * self.page_tokens
        claim = (shadow.ctx.salt, tuple(shadow.tokens[:stop]))
        is_claimable = stop <= min(len(shadow.tokens), shadow.clean_len)
        is_taken = is_claimable and any(other.claim == claim for other in self.shadows if other is not shadow)
        assert self.memory.claim(shadow.ctx, shadow.tokens) == (is_taken and stop < len(shadow.tokens))
        if is_claimable and not is_taken:
            shadow.claim = claim

    @rule()
    def begin_step(self) -> None:
        self.memory.begin_step()
        for shadow in self.shadows:
            shadow.claim = None

    @precondition(lambda self: 0 < len(self.shadows) < 6)
    @rule(pick=picks, at=lengths)
    def fork(self, pick: int, at: int) -> None:
        parent = self.pick(pick)
        at = min(at, len(parent.tokens))
        num_available, kept = self.memory.num_available, min(at, parent.ctx.num_computed)
        ctx, copies = self.memory.fork(parent.ctx, at)
        self.kv.order(copies)
        child = parent.clipped(ctx, parent.ctx.num_computed, at)
        self.check_kept(child, kept, num_available)
        self.shadows.append(child)

    @precondition(lambda self: self.shadows)
    @rule(pick=picks, length=lengths)
    def truncate(self, pick: int, length: int) -> None:
        shadow = self.pick(pick)
        length = min(length, len(shadow.tokens))
        num_available, before = self.memory.num_available, shadow.ctx.num_computed
        self.kv.order(self.memory.truncate(shadow.ctx, length))
        cut = shadow.clipped(shadow.ctx, before, length)
        self.check_kept(cut, min(length, before), num_available)
        self.shadows[self.shadows.index(shadow)] = cut

    def check_kept(self, shadow: Shadow, kept: int, num_available: int) -> None:
        full = kept // self.page_tokens * self.page_tokens
        rounded = next(p for p in range(full, MAX_LEN + 1) if not shadow.is_hidden_now(p))
        assert shadow.ctx.num_computed in {shadow.skip(kept), rounded}
        assert shadow.ctx.num_computed == shadow.skip(kept) or not num_available

    @precondition(lambda self: self.shadows)
    @rule(pick=picks, first=lengths, second=lengths)
    def drop(self, pick: int, first: int, second: int) -> None:
        shadow = self.pick(pick)
        start, stop = sorted((min(first, len(shadow.tokens)), min(second, len(shadow.tokens))))
        shadow.drop(start, stop)
        self.memory.drop(shadow.ctx, start, stop)
        assert all(page < 0 for page in self.pages_inside(shadow, start, stop))
        shadow.note_progress()

    def pages_inside(self, shadow: Shadow, start: int, stop: int) -> list[int]:
        if shadow.ctx.num_computed < shadow.progress:
            return []
        size = self.page_tokens
        return shadow.ctx.pages[-(-start // size) : max(-(-start // size), stop // size)]

    @precondition(lambda self: self.shadows)
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        shadow = self.pick(pick)
        self.memory.release(shadow.ctx)
        shadow.claim = None
        assert shadow.ctx.num_pages == 0

    @precondition(lambda self: self.shadows)
    @rule(pick=picks)
    def free(self, pick: int) -> None:
        shadow = self.pick(pick)
        self.memory.free(shadow.ctx)
        self.shadows.remove(shadow)

    @rule(text=st.sampled_from(TEXTS), length=lengths, rank=st.integers(-1, 2))
    def set_keep(self, text: list[int], length: int, rank: int) -> None:
        num_pages = self.memory.set_keep("a", text[:length], rank)
        assert num_pages * self.page_tokens <= length

    @rule()
    def clear_cache(self) -> None:
        self.memory.clear_cache()
        assert self.memory.snapshot().num_cached == 0

    @invariant()
    def is_consistent(self) -> None:
        if hasattr(self, "memory"):
            self.memory.check()
            check_content(self.memory, self.kv, self.shadows, self.page_tokens)

    def teardown(self) -> None:
        if not hasattr(self, "memory"):
            return
        for shadow in self.shadows:
            self.memory.free(shadow.ctx)
            self.memory.check()
        self.memory.clear_cache()
        self.memory.check()
        after: MemorySnapshot = self.memory.snapshot()
        assert after.num_free == after.num_pages, "pages are lost"


def test_random_operations() -> None:
    run_state_machine_as_test(MemoryMachine, settings=settings(max_examples=80, stateful_step_count=40, deadline=None))


@pytest.mark.parametrize("num_slots", [48, 112, 256])
@pytest.mark.parametrize("page_tokens", [1, 2, 4, 16])
def test_long_walks(num_slots: int, page_tokens: int) -> None:
    """Walks that are longer and better mixed than what hypothesis draws, and that come to full pools."""
    walk(num_slots, page_tokens, seed=0)


def walk(num_slots: int, page_tokens: int, seed: int) -> None:
    random = Random(seed)
    machine = MemoryMachine()
    machine.start(num_slots, page_tokens)
    for _ in range(500):
        walk_one_step(machine, random)
        machine.is_consistent()
    machine.teardown()


def walk_one_step(machine: MemoryMachine, random: Random) -> None:
    text, length = random.choice(TEXTS), random.randint(0, MAX_LEN)
    if len(machine.shadows) < 4:
        machine.open(random.choice(["a", "a", "a", b"b"]), text, length)
    pick = random.randrange(len(machine.shadows))
    shadow = machine.pick(pick)
    span = (random.randint(0, len(shadow.tokens)), random.randint(0, len(shadow.tokens)))
    if shadow.ctx.num_computed == len(shadow.tokens) and random.random() < 0.5:
        machine.append(pick, text, random.randint(1, 12))
    steps: dict[Callable[[], object], int] = {
        lambda: machine.compute(pick, random.randint(1, 24), random.random() < 0.7): 12,
        lambda: [machine.claim(idx) for idx in range(len(machine.shadows))]: 2,
        lambda: machine.fork(pick, length) if len(machine.shadows) < 6 else machine.free(pick): 3,
        lambda: machine.truncate(pick, max(span)): 2,
        lambda: machine.drop(pick, *span): 1,
        lambda: machine.release(pick): 1,
        lambda: machine.free(pick): 1,
        lambda: machine.reserve(pick, length): 1,
        machine.begin_step: 1,
        lambda: machine.set_keep(text, length, random.randint(-1, 2)): 1,
        lambda: machine.clear_cache() if random.random() < 0.2 else None: 1,
    }
    random.choices(list(steps), weights=list(steps.values()))[0]()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_random_operations_at_length() -> None:
    run_state_machine_as_test(
        MemoryMachine, settings=settings(max_examples=1500, stateful_step_count=60, deadline=None)
    )

"""A slow oracle for the KV memory: a fake KV array, and what a computation from scratch would put into it.

The KV of a position is a fingerprint of the salt, the position, its token and the KV that it saw. A forward reads what
it sees from the fake array, so one wrong slot anywhere changes every fingerprint behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from kea.memory import ContextPages, KVMemory, PageCopy, Salt


@dataclass(frozen=True, slots=True)
class Hidden:
    """The positions [start, stop), hidden from the positions from `at` on."""

    start: int
    stop: int
    at: int

    def hides(self, position: int, query: int) -> bool:
        return self.start <= position < self.stop and self.at <= query


def fingerprint(salt: Salt, position: int, token: int, seen: Sequence[int | None]) -> int:
    return hash((salt, position, token, tuple(seen)))


@lru_cache(maxsize=4096)
def from_scratch(salt: Salt, tokens: tuple[int, ...], hidden: tuple[Hidden, ...]) -> tuple[int | None, ...]:
    """Return the KV of every position; None where it was dropped before it was computed."""
    slots: list[int | None] = []
    for query, token in enumerate(tokens):
        if any(drop.hides(query, query) for drop in hidden):
            slots.append(None)
            continue
        seen = [slots[q] for q in range(query) if not any(drop.hides(q, query) for drop in hidden)]
        slots.append(fingerprint(salt, query, token, seen))
    return tuple(slots)


@dataclass(eq=False, slots=True)
class Shadow:
    """What a context should be. `progress`: tokens computed or replayed until now, whatever was lost in between."""

    ctx: ContextPages
    tokens: list[int] = field(default_factory=list)
    hidden: list[Hidden] = field(default_factory=list)
    progress: int = 0
    claim: tuple[Salt, tuple[int, ...]] | None = None

    @property
    def clean_len(self) -> int:
        return min((max(drop.start, drop.at) for drop in self.hidden), default=len(self.tokens))

    @property
    def expected(self) -> tuple[int | None, ...]:
        return from_scratch(self.ctx.salt, tuple(self.tokens), tuple(self.hidden))

    def is_hidden_now(self, position: int) -> bool:
        return any(drop.hides(position, self.ctx.num_computed) for drop in self.hidden)

    def skip(self, position: int) -> int:
        """Return the first position from `position` on that will have to be computed."""
        while any(drop.hides(position, position) for drop in self.hidden):
            position += 1
        return position

    def drop(self, start: int, stop: int) -> None:
        if start < stop:
            self.hidden.append(Hidden(start, stop, max(self.progress, self.ctx.num_computed)))
            self.claim = None

    def note_progress(self) -> None:
        self.progress = max(self.progress, self.ctx.num_computed)

    def clipped(self, ctx: ContextPages, num_computed: int, length: int) -> Shadow:
        """Return the shadow of `ctx`, cut from this one (which had `num_computed` tokens) to `length` tokens."""
        hidden = []
        for drop in self.hidden:
            if drop.start < length:
                # What was in effect stays so; were tokens lost with the last page, they are computed behind it.
                at = min(drop.at, ctx.num_computed) if drop.at <= num_computed else drop.at
                hidden.append(replace(drop, stop=min(drop.stop, length), at=min(at, length)))
        shadow = Shadow(ctx, self.tokens[:length], hidden, min(self.progress, length))
        shadow.note_progress()
        return shadow


class FakeKV:
    """The KV array of an engine, one slot per token, and the copies that wait for the next forward."""

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        self._page_tokens = page_tokens
        self._slots: list[int | None] = [None] * (num_pages * page_tokens)
        self._orders: list[PageCopy] = []

    def order(self, copies: Sequence[PageCopy]) -> None:
        self._orders.extend(copies)

    def forward(self, memory: KVMemory, shadow: Shadow, stop: int) -> None:
        """Compute the positions from `num_computed` to `stop` as a model would: from what the array holds."""
        self._slots = self.view()
        self._orders.clear()
        ctx = shadow.ctx
        runs = memory.visible_runs(ctx, stop)
        for query in range(ctx.num_computed, stop):
            seen = [self.read(self._slots, ctx, p) for start, end in runs for p in range(start, min(end, query))]
            slot = self._slot(ctx, query)
            self._slots[slot] = fingerprint(ctx.salt, query, shadow.tokens[query], seen)

    def view(self) -> list[int | None]:
        """Return the array as it will be once the waiting copies are done."""
        slots = list(self._slots)
        size = self._page_tokens
        for copy in self._orders:
            assert 0 < copy.num_tokens <= size, f"{copy} copies more than a page"
            assert copy.src != copy.dst, f"{copy} copies a page onto itself"
            source = slots[copy.src * size : copy.src * size + copy.num_tokens]
            slots[copy.dst * size : copy.dst * size + copy.num_tokens] = source
        return slots

    def read(self, slots: Sequence[int | None], ctx: ContextPages, position: int) -> int | None:
        return slots[self._slot(ctx, position)]

    def page(self, slots: Sequence[int | None], page: int) -> tuple[int | None, ...]:
        return tuple(slots[page * self._page_tokens : (page + 1) * self._page_tokens])

    def _slot(self, ctx: ContextPages, position: int) -> int:
        page = ctx.pages[position // self._page_tokens]
        assert page >= 0, f"position {position} has no page"
        return page * self._page_tokens + position % self._page_tokens


def tree_paths(memory: KVMemory) -> Iterator[tuple[Salt, tuple[int, ...], int]]:
    """Yield the salt, all tokens from the root, and the page of every node in the prefix tree."""
    for node in memory._tables.tree.nodes():
        tokens: tuple[int, ...] = ()
        for depth in range(1, node.depth + 1):
            tokens += node.ancestor(depth).tokens
        yield node.salt, tokens, node.page


def check_content(memory: KVMemory, kv: FakeKV, shadows: Sequence[Shadow], page_tokens: int) -> None:
    """Prove that every visible slot of every context, and every page in the tree, is as computed from scratch."""
    slots = kv.view()
    for shadow in shadows:
        ctx = shadow.ctx
        visible = [p for start, stop in memory.visible_runs(ctx, ctx.num_computed) for p in range(start, stop)]
        assert visible == [p for p in range(ctx.num_computed) if not shadow.is_hidden_now(p)]
        for position in visible:
            found = kv.read(slots, ctx, position)
            assert found == shadow.expected[position], f"position {position} of {shadow} holds other KV"
    for salt, tokens, page in tree_paths(memory):
        clean = from_scratch(salt, tokens, ())[-page_tokens:]
        assert kv.page(slots, page) == clean, f"page {page} of the tree is not the KV of {tokens}"

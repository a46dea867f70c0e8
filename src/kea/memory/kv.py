"""The KV memory: what the batcher asks for pages. Owns all contexts' residency; knows no tensors, no requests, no time.

A page is written by one context, while it is that context's last one. As soon as it is full it enters the prefix tree
and is never written again; whoever needs only its beginning gets a copy (`PageCopy`), so forks, truncations and prefix
hits are exact at any token. What lacks memory answers False or gives less; it never raises.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kea.memory.base import MatchResult, MemoryConfig, MemorySnapshot, PageCopy, Salt
from kea.memory.claims import Claims
from kea.memory.contexts import ContextPages
from kea.memory.drops import Drop, Span
from kea.memory.pages import PageState
from kea.memory.tables import PageTables

_NOTHING = MatchResult(0)


class KVMemory:
    """The pages of one engine. Lives as long as the engine's KV tensors; nothing to close.

    For a step the batcher calls `begin_step`, then per context `match`, `claim`, `try_reserve`, and after the forward
    `commit`.
    """

    def __init__(self, config: MemoryConfig) -> None:
        self.config = config
        self._page_tokens = config.page_tokens
        self._tables = PageTables(config)
        self._claims = Claims()
        self._contexts: set[ContextPages] = set()
        self._queried_tokens = 0
        self._hit_tokens = 0

    @property
    def num_available(self) -> int:
        """How many pages can be had at this moment: the free ones and the cached ones."""
        return self._tables.num_available

    def num_own(self, ctx: ContextPages) -> int:
        """How many pages could be had if the context gave back all of its own: those that no other context uses."""
        return self._tables.num_own(ctx)

    def open(self, salt: Salt = "") -> ContextPages:
        """Make an empty context; it shares pages with contexts of the same salt only."""
        ctx = ContextPages(salt, self._tables.tree.pin_root(salt))
        self._contexts.add(ctx)
        return ctx

    def free(self, ctx: ContextPages) -> None:
        """Give back everything and close the context."""
        self.release(ctx)
        self._tables.tree.unpin(ctx.node)
        self._contexts.remove(ctx)
        ctx.is_open = False

    def begin_step(self, flying: Collection[ContextPages] = ()) -> None:
        """End the claims of the step before, also of contexts that claimed and then were not computed; not those of
        contexts whose step is still being computed.
        """
        self._claims.clear(flying)

    def match(self, ctx: ContextPages, token_ids: Sequence[int], limit: int) -> MatchResult:
        """Take over from the prefix tree what is already computed of `token_ids`, up to `limit` tokens.

        Advances `num_computed`. Full pages are shared; the beginning of one more is copied if a page can be had. May be
        called before every chunk, for what other contexts computed meanwhile. A context that computes behind a drop
        finds nothing.
        """
        assert ctx.is_open, "match on a closed context"
        limit = _clean_len(ctx, min(limit, len(token_ids)))
        before = ctx.num_computed
        if limit <= before:
            return _NOTHING
        assert self._tables.is_attached(ctx), "a context that no drop has touched left the tree"
        self._queried_tokens += max(0, limit - max(before, ctx.num_queried))
        ctx.num_queried = max(ctx.num_queried, limit)
        self._tables.adopt_full_pages(ctx, token_ids, limit)
        copies = self._tables.adopt_beginning(ctx, token_ids, limit)
        num_hit = ctx.num_computed - before
        if not num_hit:
            return _NOTHING
        self._hit_tokens += num_hit
        self._claims.drop(ctx)
        self._settle(ctx)
        return MatchResult(num_hit, copies)

    def claim(self, ctx: ContextPages, token_ids: Sequence[int]) -> bool:
        """Say whether another context has claimed the page that `ctx` computes next; if not, `ctx` claims it.

        True: wait a step and `match` again. A claim lasts for one step at most. A page that `token_ids` does not fill
        is not claimed, and nobody waits for his last page, of which one token has to be computed anyway.
        """
        assert ctx.is_open, "claim on a closed context"
        start = ctx.node.depth * self._page_tokens
        stop = start + self._page_tokens
        if stop > _clean_len(ctx, len(token_ids)) or not self._tables.is_attached(ctx):
            return False
        return self._claims.is_taken(ctx, (ctx.node, tuple(token_ids[start:stop]))) and stop < len(token_ids)

    def try_reserve(self, ctx: ContextPages, length: int) -> bool:
        """Give the context pages for all positions below `length`, evicting cached ones; all of them or none.

        A context that gets none also loses its claim: nobody waits for it.
        """
        assert ctx.is_open, "try_reserve on a closed context"
        if self._tables.try_reserve(ctx, length):
            return True
        self._claims.drop(ctx)
        return False

    def chunk_stop(self, ctx: ContextPages, stop: int) -> int:
        """Return how far, at most to `stop`, one chunk may compute from `num_computed` on.

        A chunk ends where a dropped span begins, and where a drop takes effect again after a preemption.
        """
        if not ctx.drops:
            return stop
        change = ctx.drops.next_change(ctx.num_computed)
        return stop if change is None else min(stop, change)

    def visible_runs(self, ctx: ContextPages, stop: int) -> tuple[Span, ...]:
        """Return the stretches of [0, stop) that were not dropped: what the queries of a chunk that ends there see."""
        return ctx.drops.runs(stop)

    def commit(self, ctx: ContextPages, token_ids: Sequence[int], num_computed: int) -> None:
        """Note that the positions below `num_computed` are computed; full pages enter the prefix tree at once.

        Where the tree already has such a page, the context goes over to it and gives its own back. Advances
        `num_computed` past a dropped span that begins there.
        """
        assert ctx.is_open, "commit on a closed context"
        before = ctx.num_computed
        assert before <= num_computed <= len(token_ids), "commit goes back, or beyond the tokens"
        assert num_computed <= len(ctx.pages) * self._page_tokens, "commit of positions that have no page"
        assert num_computed <= self.chunk_stop(ctx, num_computed), "a chunk went past a drop"
        ctx.num_computed = num_computed
        if ctx.claim is not None:
            self._claims.drop(ctx)
        first = before // self._page_tokens
        if num_computed // self._page_tokens != first:
            self._tables.enter_full_pages(ctx, token_ids, first, _clean_len(ctx, num_computed))
        if ctx.drops:
            self._settle(ctx)

    def fork(self, ctx: ContextPages, at: int) -> tuple[ContextPages, tuple[PageCopy, ...]]:
        """Make a context of the first `at` tokens, as they are: full pages are shared, the last one is copied.

        Where no page can be had for the copy, the child's `num_computed` ends at the page before. What is dropped below
        `at` is dropped in the child.
        """
        assert ctx.is_open, "fork of a closed context"
        kept = min(at, ctx.num_computed)
        child = self.open(ctx.salt)
        child.drops = ctx.drops.copy()
        child.num_queried = kept
        child.replay_len = max(ctx.replay_len, ctx.num_computed)
        self._tables.share_full_pages(child, ctx, kept // self._page_tokens)
        copies = self._tables.copy_tail(child, ctx, kept)
        self._clip(child, at)
        return child, copies

    def truncate(self, ctx: ContextPages, length: int) -> tuple[PageCopy, ...]:
        """Forget all positions from `length` on.

        Where the last page is not the context's own and no page can be had for a copy, `num_computed` ends at the page
        before.
        """
        assert ctx.is_open, "truncate of a closed context"
        kept = min(length, ctx.num_computed)
        is_shorter = kept < ctx.num_computed
        ctx.replay_len = max(ctx.replay_len, ctx.num_computed)
        self._claims.drop(ctx)
        self._tables.move(ctx, ctx.node.ancestor(kept // self._page_tokens))
        self._tables.cut(ctx, -(-length // self._page_tokens))
        copies = self._tables.own_tail(ctx, kept) if is_shorter else ()
        self._clip(ctx, length)
        return copies

    def drop(self, ctx: ContextPages, start: int, stop: int) -> None:
        """Hide the positions [start, stop) from every token computed later, and give back the pages wholly inside.

        Positions in it that are not computed yet never will be. While a context is computed again after a preemption,
        the drop waits until all is computed that was computed before, so that a preemption changes no result.
        """
        assert ctx.is_open, "drop in a closed context"
        assert 0 <= start <= stop, f"drop of [{start}, {stop})"
        if start == stop:
            return
        self._claims.drop(ctx)
        ctx.drops.add(Drop(start, stop, max(ctx.num_computed, ctx.replay_len)))
        self._settle(ctx)

    def release(self, ctx: ContextPages) -> None:
        """Give back all pages; the context stays open with nothing computed, and its drops wait to be replayed.

        Full pages that no drop has touched stay cached in the tree.
        """
        assert ctx.is_open, "release of a closed context"
        ctx.replay_len = max(ctx.replay_len, ctx.num_computed)
        ctx.num_computed = 0
        ctx.num_queried = 0
        self._claims.drop(ctx)
        self._tables.move(ctx, ctx.node.ancestor(0))
        self._tables.cut(ctx, 0)
        ctx.drops.rewind()
        self._settle(ctx)

    def set_keep(self, salt: Salt, token_ids: Sequence[int], rank: int) -> int:
        """Rank the pages of a prefix that are in the tree for eviction, and return their number.

        Pages of a lower rank go first, however recently they were used; new pages have rank 0. A rank stays until it is
        set again: whoever knows the future takes back what it no longer expects.
        """
        return self._tables.tree.set_keep(salt, token_ids, rank)

    def clear_cache(self) -> None:
        """Free every cached page."""
        self._tables.tree.clear()

    def snapshot(self) -> MemorySnapshot:
        pool = self._tables.pool
        return MemorySnapshot(
            num_pages=pool.num_pages,
            num_free=pool.num_in(PageState.FREE),
            num_used=pool.num_in(PageState.USED),
            num_cached=pool.num_in(PageState.CACHED),
            queried_tokens=self._queried_tokens,
            hit_tokens=self._hit_tokens,
            num_evicted=self._tables.num_evicted,
        )

    def check(self) -> None:
        """Prove that pages, tree, tables, drops and claims agree; raises AssertionError that names what is wrong."""
        self._tables.check(self._contexts)
        self._claims.check(self._contexts)
        for ctx in self._contexts:
            assert ctx.is_open, "a closed context is still kept"
            ctx.drops.check(ctx.num_computed)
        assert self._hit_tokens <= self._queried_tokens, f"{self._hit_tokens} hits of {self._queried_tokens} queried"

    def _clip(self, ctx: ContextPages, length: int) -> None:
        """Let nothing of the context's past reach beyond `length`."""
        ctx.drops.clip(length, ctx.num_computed)
        ctx.replay_len = min(ctx.replay_len, length)
        ctx.num_queried = min(ctx.num_queried, ctx.num_computed)
        self._settle(ctx)

    def _settle(self, ctx: ContextPages) -> None:
        """Let the drops take effect that `num_computed` has reached, and pass over what is dropped."""
        drops = ctx.drops
        while (reached := drops.reach(ctx.num_computed)) or drops.skip(ctx.num_computed) > ctx.num_computed:
            for start, stop in reached:
                self._tables.hide(ctx, start, stop)
            ctx.num_computed = drops.skip(ctx.num_computed)


def _clean_len(ctx: ContextPages, length: int) -> int:
    """Return how many of the first `length` positions hold KV that is a function of the tokens alone."""
    clean_len = ctx.drops.clean_len
    return length if clean_len is None else min(length, clean_len)

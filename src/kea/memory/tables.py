"""Page tables: how pages move between the pool, the prefix tree and contexts. Knows no drops' timing, no claims.

The one rule of ownership is here: a page that the tree shows, or that two tables hold, is never written; a context that
needs the beginning of such a page for itself gets a copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from kea.memory.base import NO_PAGE, MemoryConfig, PageCopy
from kea.memory.contexts import ContextPages
from kea.memory.nodes import Node
from kea.memory.pages import PagePool, PageState
from kea.memory.tree import PrefixTree


class PageTables:
    """Changes page tables; owns the pool and the tree. Lives as long as its `KVMemory`."""

    def __init__(self, config: MemoryConfig) -> None:
        self.pool = PagePool(config.num_pages)
        self.tree = PrefixTree(self.pool, config.page_tokens)
        self.num_evicted = 0
        self._page_tokens = config.page_tokens

    @property
    def num_available(self) -> int:
        return self.pool.num_in(PageState.FREE) + self.pool.num_in(PageState.CACHED)

    def num_own(self, ctx: ContextPages) -> int:
        """Return how many of the context's pages only it refers to."""
        return sum(page != NO_PAGE and self.pool.num_refs(page) == 1 for page in ctx.pages)

    def is_attached(self, ctx: ContextPages) -> bool:
        """Say whether all full pages are on the context's path in the tree, so that its next page can be looked up."""
        return ctx.node.depth == ctx.num_computed // self._page_tokens

    def move(self, ctx: ContextPages, node: Node) -> None:
        """Let the context's path end at `node`, above or below its present end."""
        if node is not ctx.node:
            self.tree.move_pin(ctx.node, node)
            ctx.node = node

    def try_reserve(self, ctx: ContextPages, length: int) -> bool:
        """Fill the table from the page of `num_computed` up to `length`, but for what is dropped; all or nothing."""
        pages = ctx.pages
        first = ctx.num_computed // self._page_tokens
        stop = -(-length // self._page_tokens)
        if stop <= len(pages) and NO_PAGE not in pages[first:stop]:
            return True
        wanted = [idx for idx in range(first, stop) if self._is_missing(ctx, idx)]
        if len(wanted) > self.num_available:
            return False
        ctx.note_change()
        pages.extend([NO_PAGE] * (stop - len(pages)))
        for idx in wanted:
            page = self._try_take()
            assert page is not None, "the pages counted as available could not be had"
            pages[idx] = page
        return True

    def cut(self, ctx: ContextPages, num_pages: int) -> None:
        """Give back all pages of the table behind the first `num_pages`."""
        ctx.note_change()
        for page in ctx.pages[num_pages:]:
            if page != NO_PAGE:
                self.pool.give_back(page)
        del ctx.pages[num_pages:]

    def hide(self, ctx: ContextPages, start: int, stop: int) -> None:
        """Give back the pages of [start, stop) that are dropped as a whole."""
        size = self._page_tokens
        inside = range(start // size, min(-(-stop // size), len(ctx.pages)))
        hidden = [idx for idx in inside if ctx.drops.hides(idx * size, (idx + 1) * size)]
        if hidden:
            ctx.note_change()
            self.move(ctx, ctx.node.ancestor(hidden[0]))
        for idx in hidden:
            if ctx.pages[idx] != NO_PAGE:
                self.pool.give_back(ctx.pages[idx])
                ctx.pages[idx] = NO_PAGE

    def adopt_full_pages(self, ctx: ContextPages, token_ids: Sequence[int], limit: int) -> None:
        """Share the pages of the tree that continue the context's path, up to `limit` tokens."""
        node = ctx.node
        size = self._page_tokens
        for start in range(node.depth * size, limit - size + 1, size):
            child = node.children.get(tuple(token_ids[start : start + size]))
            if child is None:
                break
            self._swap(ctx, node.depth, child.page)
            node = child
        if node is not ctx.node:
            self.move(ctx, node)
            ctx.num_computed = node.depth * size

    def adopt_beginning(self, ctx: ContextPages, token_ids: Sequence[int], limit: int) -> tuple[PageCopy, ...]:
        """Copy the beginning of a page of the tree into the context's next page, if it has one or can have one."""
        idx = ctx.node.depth
        start = idx * self._page_tokens
        source, num_tokens = ctx.node.longest_match(tuple(token_ids[start : min(limit, start + self._page_tokens)]))
        if source is None or start + num_tokens <= ctx.num_computed:
            return ()
        if idx == len(ctx.pages):
            self.tree.pin(source)  # a page must not be evicted to make room for its own copy
            page = self._try_take()
            self.tree.unpin(source)
            if page is None:
                return ()
            ctx.note_change()
            ctx.pages.append(page)
        ctx.num_computed = start + num_tokens
        return (PageCopy(source.page, ctx.pages[idx], num_tokens),)

    def enter_full_pages(self, ctx: ContextPages, token_ids: Sequence[int], first: int, length: int) -> None:
        """Show the full pages of [first page, `length` tokens) in the tree, or go over to those that it has already."""
        size = self._page_tokens
        for idx in range(first, length // size):
            assert ctx.node.depth == idx, "a page enters the tree without the page before it"
            tokens = tuple(token_ids[idx * size : (idx + 1) * size])
            child = ctx.node.children.get(tokens)
            if child is None:
                child = self.tree.insert(ctx.node, tokens, ctx.pages[idx])
                self.tree.unpin(ctx.node)
                ctx.node = child
            else:
                self._swap(ctx, idx, child.page)
                self.move(ctx, child)

    def share_full_pages(self, child: ContextPages, ctx: ContextPages, num_pages: int) -> None:
        """Let an empty context share the first pages of another one."""
        child.note_change()
        child.pages = ctx.pages[:num_pages]
        for page in child.pages:
            if page != NO_PAGE:
                self.pool.share(page)
        self.move(child, ctx.node.ancestor(num_pages))

    def copy_tail(self, child: ContextPages, ctx: ContextPages, kept: int) -> tuple[PageCopy, ...]:
        """Let a fork that shares the full pages end at `kept`, with its own copy of what remains of the last page."""
        num_full, num_tokens = divmod(kept, self._page_tokens)
        child.num_computed = kept
        source = _entry(ctx, num_full)
        if not num_tokens or source == NO_PAGE:
            return ()
        page = self._try_take()
        if page is None:
            child.num_computed = num_full * self._page_tokens
            return ()
        child.note_change()
        child.pages.append(page)
        return (PageCopy(source, page, num_tokens),)

    def own_tail(self, ctx: ContextPages, kept: int) -> tuple[PageCopy, ...]:
        """Let a cut context end at `kept`, replacing a last page that is not its own."""
        num_full, num_tokens = divmod(kept, self._page_tokens)
        ctx.num_computed = kept
        source = _entry(ctx, num_full)
        if not num_tokens or source == NO_PAGE or self.pool.is_private(source):
            return ()
        page = self._try_take()
        if page is None:
            # Looking for a page to evict may have taken this one out of the tree: then it can be written as it is.
            if not self.pool.is_private(source):
                ctx.num_computed = num_full * self._page_tokens
                self.cut(ctx, num_full)
            return ()
        self.pool.give_back(source)
        ctx.note_change()
        ctx.pages[num_full] = page
        return (PageCopy(source, page, num_tokens),)

    def _is_missing(self, ctx: ContextPages, idx: int) -> bool:
        size = self._page_tokens
        return _entry(ctx, idx) == NO_PAGE and not ctx.drops.hides(idx * size, (idx + 1) * size)

    def _try_take(self) -> int | None:
        page = self.pool.try_take()
        if page is None and self.tree.try_evict():
            self.num_evicted += 1
            page = self.pool.try_take()
        return page

    def _swap(self, ctx: ContextPages, idx: int, page: int) -> None:
        """Let entry `idx` of the table be a page of the tree, giving back the page that was there."""
        ctx.note_change()
        self.pool.share(page)
        if idx == len(ctx.pages):
            ctx.pages.append(page)
        else:
            self.pool.give_back(ctx.pages[idx])
            ctx.pages[idx] = page

    def check(self, contexts: Collection[ContextPages]) -> None:
        """Prove that the pool, the tree and the tables of all `contexts` agree."""
        self.pool.check()
        self.tree.check(Counter(ctx.node for ctx in contexts))
        refs = Counter(page for ctx in contexts for page in ctx.pages if page != NO_PAGE)
        for page in range(self.pool.num_pages):
            counted = self.pool.num_refs(page)
            assert counted == refs[page], f"page {page} counts {counted} references, {refs[page]} tables hold it"
        shown = {node.page for node in self.tree.nodes()}
        for page in range(self.pool.num_pages):
            assert self.pool.is_in_tree(page) == (page in shown), f"page {page} is wrong about being in the tree"
        for ctx in contexts:
            self._check_table(ctx)

    def _check_table(self, ctx: ContextPages) -> None:
        path = [ctx.node.ancestor(depth).page for depth in range(1, ctx.node.depth + 1)]
        assert ctx.table == tuple(ctx.pages), f"the table is kept as {ctx.table}, though it is {ctx.pages}"
        assert path == ctx.pages[: ctx.node.depth], f"the path {path} in the tree is not the table {ctx.pages}"
        assert ctx.is_tainted or self.is_attached(ctx), "a full page of an untouched context is not in the tree"
        for start, stop in ctx.drops.runs(ctx.num_computed):
            for idx in range(start // self._page_tokens, (stop - 1) // self._page_tokens + 1):
                assert _entry(ctx, idx) != NO_PAGE, f"positions of [{start}, {stop}) are visible but have no page"
        for page in ctx.pages[ctx.num_computed // self._page_tokens :]:
            is_private = page == NO_PAGE or self.pool.is_private(page)
            assert is_private, f"page {page} is shared but would be written"


def _entry(ctx: ContextPages, idx: int) -> int:
    return ctx.pages[idx] if idx < len(ctx.pages) else NO_PAGE

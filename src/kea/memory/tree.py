"""The prefix tree: full pages by content. Owns the nodes, pins and eviction; knows no contexts, no partial pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kea.memory.base import Salt
from kea.memory.eviction import EvictionOrder
from kea.memory.nodes import Node, PageTokens
from kea.memory.pages import PagePool


class PrefixTree:
    """One tree per salt; a node per full page, found under its parent by its tokens (RadixAttention, at page grain).

    A pin on a node holds its whole path, since only leaves are evicted. Hence every cached page can be evicted: a path
    that a context pins has that context's references on all its pages. A context that dropped a page in the middle
    pins only the path before it; pages behind that it still uses may leave the tree without becoming free.
    Lives as long as the memory; contexts unpin what they pinned.
    """

    def __init__(self, pool: PagePool, page_tokens: int) -> None:
        self._pool = pool
        self._page_tokens = page_tokens
        self._roots: dict[Salt, Node] = {}
        self._order = EvictionOrder()
        self._last_use = 0
        self._num_nodes = 0

    def pin_root(self, salt: Salt) -> Node:
        """Return the root of `salt`, pinned once."""
        root = self._roots.get(salt)
        if root is None:
            root = self._roots[salt] = Node(salt)
        self.pin(root)
        return root

    def pin(self, node: Node) -> None:
        node.pins += 1
        self._order.discard(node)

    def unpin(self, node: Node) -> None:
        """Remove a pin; the last one marks the path as used now."""
        assert node.pins > 0, f"page {node.page} is unpinned once too often"
        node.pins -= 1
        if not node.pins:
            self._last_use += 1
            node.last_used = self._last_use
            self._retire(node)

    def move_pin(self, node: Node, to: Node) -> None:
        """Move one pin, without a moment in which neither node is pinned."""
        self.pin(to)
        self.unpin(node)

    def insert(self, parent: Node, tokens: PageTokens, page: int) -> Node:
        """Add a used page under a pinned parent that lacks these tokens, and return its node, pinned once."""
        assert parent.pins, f"page {page} is added under page {parent.page}, which nobody pins"
        assert tokens not in parent.children, f"page {page} is already in the tree as another page"
        node = Node(parent.salt, parent, tokens, page)
        node.pins = 1
        parent.attach(node)
        self._pool.enter_tree(page)
        self._num_nodes += 1
        return node

    def try_evict(self) -> bool:
        """Free the cached page that is wanted least, or return False when nothing is cached."""
        while (node := self._order.try_pop()) is not None:
            if self._unlink(node):
                return True
        return False

    def clear(self) -> None:
        """Free every cached page."""
        while self.try_evict():
            pass

    def set_keep(self, salt: Salt, token_ids: Sequence[int], rank: int) -> int:
        """Set the rank of every page on the path of `token_ids`; return the number of pages found."""
        num_pages = 0
        for node in self._path(salt, token_ids):
            node.keep = rank
            if node.stamp:
                self._order.discard(node)
                self._order.add(node)
            num_pages += 1
        return num_pages

    def _path(self, salt: Salt, token_ids: Sequence[int]) -> Iterator[Node]:
        node = self._roots.get(salt)
        start = 0
        while node is not None:
            node = node.children.get(tuple(token_ids[start : start + self._page_tokens]))
            start += self._page_tokens
            if node is not None:
                yield node

    def _unlink(self, node: Node) -> bool:
        parent = node.parent
        assert parent is not None, "a root is never queued for eviction"
        parent.detach(node)
        # The path was used when its end was; siblings of another last use may have gone before.
        parent.last_used = max(parent.last_used, node.last_used)
        self._num_nodes -= 1
        self._retire(parent)
        return self._pool.leave_tree(node.page)

    def _retire(self, node: Node) -> None:
        if node.is_evictable:
            self._order.add(node)
        elif node.is_root and not node.pins and not node.children:
            del self._roots[node.salt]

    def nodes(self) -> Iterator[Node]:
        """Yield every node but the roots, parents first; for checks."""
        pending = list(self._roots.values())
        while pending:
            node = pending.pop()
            if not node.is_root:
                yield node
            pending.extend(node.children.values())

    def check(self, pins: Mapping[Node, int]) -> None:
        """Prove the links, the pins (given: how many contexts end at each node) and the order of eviction."""
        nodes = list(self.nodes())
        assert len(nodes) == self._num_nodes, f"{len(nodes)} nodes hang on the roots, counted {self._num_nodes}"
        pages = {node.page for node in nodes}
        assert len(pages) == len(nodes), "a page is in the tree twice"
        for salt, root in self._roots.items():
            assert root.salt == salt, f"the root of {salt!r} is filed under another salt"
            assert root.pins or root.children, f"the root of {salt!r} is needed by nobody"
        for node in [*self._roots.values(), *nodes]:
            node.check_links()
            assert node.pins == pins.get(node, 0), f"page {node.page} has {node.pins} pins, not {pins.get(node, 0)}"
            assert bool(node.stamp) == node.is_evictable, f"page {node.page} is missing in the order of eviction"
            assert node.last_used <= self._last_use, f"page {node.page} was used in the future"
        assert set(pins) <= {*self._roots.values(), *nodes}, "a context ends at a node that is not in the tree"
        assert len(self._order) == sum(node.is_evictable for node in nodes), "the order of eviction holds other nodes"
        self._order.check()

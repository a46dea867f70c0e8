"""One node of the prefix tree: a full page of tokens. Owns the links and the search among children; knows no pool."""

from __future__ import annotations

from bisect import bisect_left, insort

from kea.memory.base import NO_PAGE, Salt

PageTokens = tuple[int, ...]


class Node:
    """A full page under its parent, or the root of a salt (no tokens, no page, depth 0).

    `pins` counts the contexts whose path ends here; a node with children is never evicted, so a pin holds the whole
    path. `stamp` names the node's valid entry in the order of eviction, 0 for none.
    """

    __slots__ = (
        "_sorted",
        "children",
        "depth",
        "keep",
        "last_used",
        "page",
        "parent",
        "pins",
        "salt",
        "stamp",
        "tokens",
    )

    def __init__(self, salt: Salt, parent: Node | None = None, tokens: PageTokens = (), page: int = NO_PAGE) -> None:
        self.salt = salt
        self.parent = parent
        self.tokens = tokens
        self.page = page
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: dict[PageTokens, Node] = {}
        self._sorted: list[PageTokens] = []
        self.pins = 0
        self.keep = 0
        self.last_used = 0
        self.stamp = 0

    @property
    def is_root(self) -> bool:
        return self.parent is None

    @property
    def is_evictable(self) -> bool:
        return self.parent is not None and not self.pins and not self.children

    def attach(self, child: Node) -> None:
        self.children[child.tokens] = child
        insort(self._sorted, child.tokens)

    def detach(self, child: Node) -> None:
        del self.children[child.tokens]
        del self._sorted[bisect_left(self._sorted, child.tokens)]

    def ancestor(self, depth: int) -> Node:
        """Return the node at `depth` on the path from the root to this node."""
        node = self
        while node.depth > depth:
            assert node.parent is not None, "only a root has no parent, at depth 0"
            node = node.parent
        return node

    def longest_match(self, tokens: PageTokens) -> tuple[Node | None, int]:
        """Return the child that shares the most leading tokens, and how many; (None, 0) when none shares any.

        Among sorted sequences the longest common prefix with a given one is found at a neighbour of its place, so two
        comparisons are exact however many children there are.
        """
        place = bisect_left(self._sorted, tokens)
        best: Node | None = None
        best_len = 0
        for neighbour in self._sorted[max(place - 1, 0) : place + 1]:
            common_len = _common_len(neighbour, tokens)
            if common_len > best_len:
                best, best_len = self.children[neighbour], common_len
        return best, best_len

    def check_links(self) -> None:
        """Prove that children and parent agree and that the search sees every child."""
        assert self._sorted == sorted(self.children), f"the children of page {self.page} are out of order"
        for tokens, child in self.children.items():
            assert child.tokens == tokens, f"page {child.page} is filed under other tokens"
            assert child.parent is self, f"page {child.page} has another parent than page {self.page}"
            assert child.depth == self.depth + 1, f"page {child.page} has depth {child.depth}"
            assert child.salt == self.salt, f"page {child.page} has another salt than its parent"


def _common_len(first: PageTokens, second: PageTokens) -> int:
    length = 0
    for left, right in zip(first, second, strict=False):
        if left != right:
            break
        length += 1
    return length

"""The pool of pages. Owns every page's state and reference count; knows nothing of tokens, trees or contexts."""

from __future__ import annotations

from collections import Counter
from enum import IntEnum


class PageState(IntEnum):
    """Where a page stands: FREE holds nothing; USED is in a page table; CACHED is in the prefix tree alone.

    The numbers are places in tables, because pages move on the hot path; nothing compares them by size.
    """

    FREE = 0
    USED = 1
    CACHED = 2


_ALLOWED_MOVES = (
    (PageState.USED,),  # from FREE
    (PageState.FREE, PageState.CACHED),  # from USED
    (PageState.USED, PageState.FREE),  # from CACHED
)


class PagePool:
    """A fixed number of pages, numbered from 0. Lives as long as the memory; holds no resource of its own.

    A reference is an entry of a page table. A page in the tree keeps its content when its last reference goes.
    """

    def __init__(self, num_pages: int) -> None:
        self._states = [PageState.FREE] * num_pages
        self._refs = [0] * num_pages
        self._in_tree = bytearray(num_pages)
        self._free = list(range(num_pages - 1, -1, -1))
        self._counts = [num_pages, 0, 0]  # by state

    @property
    def num_pages(self) -> int:
        return len(self._states)

    def num_in(self, state: PageState) -> int:
        """Return how many pages are in `state`."""
        return self._counts[state]

    def state(self, page: int) -> PageState:
        return self._states[page]

    def num_refs(self, page: int) -> int:
        return self._refs[page]

    def is_private(self, page: int) -> bool:
        """Say whether one context alone may write into the page: one reference, and the tree does not show it."""
        return self._refs[page] == 1 and not self._in_tree[page]

    def is_in_tree(self, page: int) -> bool:
        return bool(self._in_tree[page])

    def try_take(self) -> int | None:
        """Take a free page with one reference, or None when there is none."""
        if not self._free:
            return None
        page = self._free.pop()
        self._refs[page] = 1
        self._move(page, PageState.USED)
        return page

    def share(self, page: int) -> None:
        """Add a reference to a page that is used or cached."""
        self._refs[page] += 1
        if self._refs[page] == 1:
            assert self._in_tree[page], f"page {page} is shared but holds nothing"
            self._move(page, PageState.USED)

    def give_back(self, page: int) -> None:
        """Remove a reference; the last one leaves the page cached if the tree shows it, else free."""
        assert self._refs[page] > 0, f"page {page} is given back once too often"
        self._refs[page] -= 1
        if self._refs[page] == 0:
            self._retire(page)

    def enter_tree(self, page: int) -> None:
        """Note that the tree shows this used page: from here on nobody writes into it."""
        assert self._refs[page] > 0, f"page {page} enters the tree but holds nothing"
        assert not self._in_tree[page], f"page {page} enters the tree twice"
        self._in_tree[page] = True

    def leave_tree(self, page: int) -> bool:
        """Note that the tree shows the page no longer; return whether that made it free."""
        assert self._in_tree[page], f"page {page} leaves the tree but is not in it"
        self._in_tree[page] = False
        if self._refs[page] == 0:
            self._retire(page)
        return self._refs[page] == 0

    def _retire(self, page: int) -> None:
        if self._in_tree[page]:
            self._move(page, PageState.CACHED)
        else:
            self._free.append(page)
            self._move(page, PageState.FREE)

    def _move(self, page: int, state: PageState) -> None:
        before = self._states[page]
        assert state in _ALLOWED_MOVES[before], f"page {page} moves from {before.name} to {state.name}"
        self._counts[before] -= 1
        self._counts[state] += 1
        self._states[page] = state

    def check(self) -> None:
        """Prove free + used + cached == total, and each page's state from its references and its place in the tree."""
        for page, state in enumerate(self._states):
            idle = PageState.CACHED if self._in_tree[page] else PageState.FREE
            expected = PageState.USED if self._refs[page] else idle
            assert state is expected, f"page {page} is {state.name}, should be {expected.name}"
        counts = Counter(self._states)
        for state in PageState:
            counted = f"{counts[state]} pages are {state.name}, counted {self._counts[state]}"
            assert counts[state] == self._counts[state], counted
        assert sum(self._counts) == self.num_pages, f"states count {self._counts}, the pool has {self.num_pages}"
        free = {page for page, state in enumerate(self._states) if state is PageState.FREE}
        assert len(self._free) == len(free), "the free list holds a page twice, or lacks one"
        assert set(self._free) == free, "the free list and the free pages differ"

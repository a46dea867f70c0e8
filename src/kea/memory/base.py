"""The values of the KV memory's contract. Owns its configuration, orders and snapshot; knows no tensors, no engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kea.errors import check_range

Salt = str | bytes
"""What keeps two prefix trees apart (the tenant, the attention policy): nothing is shared between two salts."""

NO_PAGE: Final = -1
"""The entry of a page table whose page was dropped: no query sees a position of it."""


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """The pool: `num_pages` pages of `page_tokens` tokens each."""

    num_pages: int
    page_tokens: int

    def __post_init__(self) -> None:
        check_range("num_pages", self.num_pages, 1)
        check_range("page_tokens", self.page_tokens, 1)


@dataclass(frozen=True, slots=True)
class PageCopy:
    """Copy the first `num_tokens` slots of page `src` into page `dst`, in every layer.

    Orders are executed in the order in which they were given, before the next forward: a page named here may already
    have been given to somebody else, who writes into it only by a later order or by that forward.
    """

    src: int
    dst: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class MatchResult:
    """The computed tokens that a context gained from the prefix tree, and the copies that make them its own."""

    num_tokens: int
    copies: tuple[PageCopy, ...] = ()


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """Pages by state (their sum is the pool), and the prefix tree's record since the start.

    `queried_tokens` were looked up, `hit_tokens` of them were found; a context that was preempted looks up again.
    `num_evicted` counts the cached pages that were given up for want of free ones.
    """

    num_pages: int
    num_free: int
    num_used: int
    num_cached: int
    queried_tokens: int
    hit_tokens: int
    num_evicted: int

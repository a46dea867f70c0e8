"""A context's residency: which pages hold its tokens. Owns the record; `KVMemory` alone changes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from kea.memory.base import NO_PAGE, Salt
from kea.memory.drops import Drops, Span
from kea.memory.nodes import Node, PageTokens

ClaimKey = tuple[Node, PageTokens]
"""A page about to be computed: its tokens under the node of the page before it."""


@dataclass(slots=True, eq=False)
class ContextPages:
    """The pages of one context. Made by `KVMemory.open` or `fork`; whoever made it calls `KVMemory.free`.

    Position p lies in page pages[p // page_tokens]; an entry is `NO_PAGE` where the page was dropped. Positions below
    `num_computed` are computed or dropped; pages behind it are reserved. The page that holds `num_computed` and those
    behind it are private; full pages before it are shared and immutable as long as no drop has touched them.
    `node` is the end of the context's path in the prefix tree: its first `node.depth` pages. Positions below
    `replay_len` had been computed before they were lost (preemption, or no page for a tail), and are computed again as
    they were.
    """

    salt: Salt
    node: Node
    pages: list[int] = field(default_factory=list)
    num_computed: int = 0
    drops: Drops = field(default_factory=Drops)
    claim: ClaimKey | None = None
    num_queried: int = 0
    replay_len: int = 0
    is_open: bool = True
    _table: tuple[int, ...] | None = None

    @property
    def table(self) -> tuple[int, ...]:
        """The pages, as a value: the same object as long as they stay the same."""
        if self._table is None:
            self._table = tuple(self.pages)
        return self._table

    def note_change(self) -> None:
        """Record that `pages` is changed."""
        self._table = None

    @property
    def is_tainted(self) -> bool:
        """Whether something was dropped: what is computed from there on never enters the prefix tree."""
        return bool(self.drops)

    @property
    def dropped(self) -> tuple[Span, ...]:
        """The spans that no later query sees, merged and sorted."""
        return tuple(self.drops.spans)

    @property
    def num_pages(self) -> int:
        """How many pages of the pool the context refers to."""
        return len(self.pages) - self.pages.count(NO_PAGE)

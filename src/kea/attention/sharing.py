"""Which pages the contexts of a step have in common, and which of them are worth reading once for all their queries.

Contexts with the same prefix hold the same pages: sorted by their page tables they form a tree, whose nodes are
stretches of pages and the contexts below. A node becomes a *segment*, read once for the rows of all of them, or its
pages are left to its children, whichever costs less. Sharing is found from the beginning of the tables on: behind the
first page that differs, contexts are strangers. Host-side planning only: knows no tensors, no layers, no backends.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kea.attention.base import Run, SequencePlan

UNBOUNDED = np.iinfo(np.int64).max // 4
NOWHERE = -UNBOUNDED

Int64 = NDArray[np.int64]
Table = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SharingCosts:
    """What a segment costs a backend, in the time that it takes to read one token's keys and values.

    `segment`: to begin one. `row`: to merge a row's partial result. `product`: to compute a row's part of one token.
    """

    segment: float
    row: float
    product: float

    def of_tokens(self, num_tokens: int, num_rows: int) -> float:
        return num_tokens * (1.0 + self.product * num_rows)

    def of_segment(self, num_tokens: int, num_rows: int) -> float:
        return self.segment + self.row * num_rows + self.of_tokens(num_tokens, num_rows)


@dataclass(frozen=True, slots=True)
class Segments:
    """N stretches of keys, each with the rows that attend to it. A row's partial results are to be merged.

    Segment n holds the positions [`starts`[n], `stops`[n]). Its pages are the entries [`page_bounds`[n],
    `page_bounds`[n + 1]) of `pages`; the first one's first key is at position `bases`[n]. Its rows are the entries
    [`row_bounds`[n], `row_bounds`[n + 1]) of `rows` (rows of the flattened batch), each of which sees the positions
    [`lows`, `highs`) of it, one at least. No row sees a position in two segments. They are in no order.

    `tables` [M]: where `pages` has the first page of a growing context's table, or would have it, by the context's
    first row (NOWHERE for other rows): the page of its position p is p // page_tokens behind. `rooms` [M]: for how many
    pages of that table there is room.
    """

    pages: Int64
    page_bounds: Int64
    bases: Int64
    starts: Int64
    stops: Int64
    rows: Int64
    row_bounds: Int64
    lows: Int64
    highs: Int64
    tables: Int64
    rooms: Int64

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, slots=True)
class Piece:
    """Positions [start, stop) that the members [first, last) of a tree all hold in the same pages, and how far back
    each of their queries sees there."""

    first: int
    last: int
    start: int
    stop: int
    reach: int


class SharingTree:
    """The contexts of one step, sorted by page table, so that those below a node of the tree are consecutive.

    `members` in that order; `common` [M - 1] how many pages each has in common with the next. Lives as long as a step.
    """

    def __init__(
        self, members: Sequence[SequencePlan], common: Sequence[int], tables: Sequence[Int64], page_tokens: int
    ) -> None:
        self._members = members
        self._common = common
        self._tables = tables
        self._page_tokens = page_tokens
        self._plain = [_is_plain(member) for member in members]
        self._counts = [member.num_queries for member in members]
        self._firsts = [member.position for member in members]
        self._ends = [member.position + member.num_queries for member in members]
        self._bounds: Int64 = np.concatenate([[0], np.cumsum(self._counts)]).astype(np.int64)
        within = np.arange(self._bounds[-1]) - np.repeat(self._bounds[:-1], self._counts)
        row_starts = np.array([member.row_start for member in members], dtype=np.int64)
        self._rows = np.repeat(row_starts, self._counts) + within
        self._positions = np.repeat(np.array(self._firsts, dtype=np.int64), self._counts) + within

    def segments(self, window: int | None, costs: SharingCosts, *, num_spare: int | None = None) -> Segments:
        """Return the segments of a layer of this `window`; with equal costs for all layers, compute it once a step.

        With `num_spare`, a segment that ends with its context can grow: it has the rest of the table's pages, too, and
        room for so many more.
        """
        reach = UNBOUNDED if window is None else window - 1
        pieces = [piece for node in self._chosen(reach, costs) for piece in self._pieces(*node, reach)]
        return self._assemble(pieces, num_spare)

    def _chosen(self, reach: int, costs: SharingCosts) -> Iterator[tuple[int, int, int, int]]:
        """Yield (first member, last, start, stop): the nodes that pay, from the root down, and each member's rest."""
        size = self._page_tokens
        waiting = [(0, len(self._members), 0)] if self._members else []
        while waiting:
            first, last, start = waiting.pop()
            if last - first == 1:
                yield first, last, start, self._ends[first]
                continue
            num_pages = min(self._common[first : last - 1])
            cuts = [first, *(i + 1 for i in range(first, last - 1) if self._common[i] == num_pages), last]
            children = list(pairwise(cuts))
            stop = num_pages * size
            if start < stop and self._pays(children, start, stop, reach, costs):
                yield first, last, start, stop
                start = stop
            waiting += [(*child, start) for child in children]

    def _pays(self, children: list[tuple[int, int]], start: int, stop: int, reach: int, costs: SharingCosts) -> bool:
        """Say whether [start, stop) costs less as a segment than as the beginning of every child's own."""
        together = (children[0][0], children[-1][1])
        apart = sum(
            costs.of_tokens(self._num_visible(child, start, stop, reach), self._num_rows(child)) for child in children
        )
        return costs.of_segment(self._num_visible(together, start, stop, reach), self._num_rows(together)) < apart

    def _num_rows(self, members: tuple[int, int]) -> int:
        return sum(self._counts[slice(*members)])

    def _num_visible(self, members: tuple[int, int], start: int, stop: int, reach: int) -> int:
        """Return how many of the positions [start, stop) some member sees; the first one's runs stand for all."""
        earliest, end = min(self._firsts[slice(*members)]), max(self._ends[slice(*members)])
        num_tokens = 0
        for run in self._members[members[0]].runs:
            lo, hi = max(start, run.start, earliest - _reach(run, reach)), min(stop, run.stop, end)
            num_tokens += max(0, hi - lo)
        return num_tokens

    def _pieces(self, first: int, last: int, start: int, stop: int, reach: int) -> Iterator[Piece]:
        """Yield [start, stop) by the members' runs: consecutive members with the same run over it stay together."""
        if all(self._plain[first:last]):
            yield Piece(first, last, start, stop, reach)
            return
        ends = {end for m in self._members[first:last] for run in m.runs for end in (run.start, run.stop)}
        cuts = [start, *sorted(end for end in ends if start < end < stop), stop]
        for lo, hi in pairwise(cuts):
            runs = [_covering(member, lo) for member in self._members[first:last]]
            begin = 0
            for i in range(1, len(runs) + 1):
                if i < len(runs) and _alike(runs[i], runs[begin]):
                    continue
                run = runs[begin]
                if run is not None:
                    yield Piece(first + begin, first + i, lo, hi, _reach(run, reach))
                begin = i

    def _assemble(self, pieces: list[Piece], num_spare: int | None) -> Segments:
        """Write the pieces out, without the rows that see nothing of them and what no row sees."""
        fields = np.array([(p.first, p.last, p.start, p.stop, p.reach) for p in pieces], dtype=np.int64).reshape(-1, 5)
        first, last, start, stop, reach = fields.T
        counts = self._bounds[last] - self._bounds[first]
        owner = np.repeat(np.arange(len(pieces)), counts)
        entries = np.arange(len(owner)) + np.repeat(self._bounds[first] - (np.cumsum(counts) - counts), counts)
        positions = self._positions[entries]
        lows = np.maximum(start[owner], positions - reach[owner])
        highs = np.minimum(stop[owner], positions + 1)
        seen = lows < highs
        entries, owner, lows, highs = entries[seen], owner[seen], lows[seen], highs[seen]
        heads = np.flatnonzero(np.diff(owner, prepend=-1))
        kept = owner[heads]
        tables, rooms = np.full(self._bounds[-1], NOWHERE), np.zeros(self._bounds[-1], np.int64)
        if not len(kept):
            no, one = (np.zeros(size, np.int64) for size in (0, 1))
            return Segments(no, one, no, no, no, no, one, no, no, tables, rooms)
        starts, stops = np.minimum.reduceat(lows, heads), np.maximum.reduceat(highs, heads)
        first_page, last_page = starts // self._page_tokens, (stops - 1) // self._page_tokens + 1
        is_last = np.zeros(len(kept), bool)
        if num_spare is not None:
            is_last = stops == np.array(self._ends)[first[kept]]
            grown = [len(self._tables[member]) + num_spare for member in first[kept]]
            last_page = np.where(is_last, grown, last_page)
        page_bounds = np.concatenate([[0], np.cumsum(last_page - first_page)])
        pages = np.zeros(page_bounds[-1], np.int64)
        spans = zip(page_bounds.tolist(), first[kept].tolist(), first_page.tolist(), last_page.tolist(), strict=False)
        for place, member, lo, hi in spans:
            held = self._tables[member][lo:hi]
            pages[place : place + len(held)] = held
        assert pages.min() >= 0, "a page that a run covers is missing from the page table"
        growing = self._rows[entries[heads[is_last]]]
        tables[growing], rooms[growing] = (page_bounds[:-1] - first_page)[is_last], last_page[is_last]
        return Segments(
            pages=pages,
            page_bounds=page_bounds,
            bases=first_page * self._page_tokens,
            starts=starts,
            stops=stops,
            rows=self._rows[entries],
            row_bounds=np.append(heads, len(owner)),
            lows=lows,
            highs=highs,
            tables=tables,
            rooms=rooms,
        )


class SharingPlanner:
    """Sorts the contexts of a step; keeps the order for the next one, where the same contexts have only grown."""

    def __init__(self) -> None:
        self._tables: list[Table] = []
        self._order: list[int] = []
        self._common: list[int] = []
        self._arrays: list[Int64] = []
        self._known: set[int] = set()
        self.num_sorted = 0

    def tree(self, sequences: Sequence[SequencePlan], page_tokens: int) -> SharingTree:
        tables = [sequence.page_table for sequence in sequences]
        if not self._grow(tables):
            self._sort(tables)
        members = [sequences[i] for i in self._order]
        return SharingTree(members, self._common, [self._arrays[i] for i in self._order], page_tokens)

    def _grow(self, tables: list[Table]) -> bool:
        """Take over what was added to the tables; False where they are others, or an added page may be shared."""
        if len(tables) != len(self._tables):
            return False
        grown = []
        for i, (table, known) in enumerate(zip(tables, self._tables, strict=True)):
            if table is known or table == known:
                continue
            added = table[len(known) :]
            if not added or table[: len(known)] != known or not self._known.isdisjoint(added):
                return False
            self._known.update(page for page in added if page >= 0)
            grown.append((i, added))
        for i, added in grown:
            self._tables[i] = tables[i]
            self._arrays[i] = np.append(self._arrays[i], added)
        return True

    def _sort(self, tables: list[Table]) -> None:
        self.num_sorted += 1
        self._tables = tables
        self._order = sorted(range(len(tables)), key=tables.__getitem__)
        self._common = [_num_common(tables[a], tables[b]) for a, b in pairwise(self._order)]
        self._arrays = [np.array(table, dtype=np.int64) for table in tables]
        self._known = set().union(*tables) - {-1}


def _num_common(a: Table, b: Table) -> int:
    """Return how many pages two tables have in common from their beginning on."""
    if not a or not b or a[0] != b[0]:
        return 0
    return bisect_left(range(min(len(a), len(b))), True, key=lambda i: a[: i + 1] != b[: i + 1])


def _is_plain(member: SequencePlan) -> bool:
    """Say whether the queries see all that is before them."""
    return len(member.runs) == 1 and member.runs[0].start == 0 and member.runs[0].left is None


def _covering(member: SequencePlan, position: int) -> Run | None:
    return next((run for run in member.runs if run.start <= position < run.stop), None)


def _alike(a: Run | None, b: Run | None) -> bool:
    return a is b or (a is not None and b is not None and a.left == b.left)


def _reach(run: Run, reach: int) -> int:
    return reach if run.left is None else min(reach, run.left)

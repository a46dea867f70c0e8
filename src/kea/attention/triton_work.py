"""Cuts a step into items of work for the kernels of the backend `triton`. Host-side planning over NumPy arrays.

A *stretch* is a row of pages and the queries that see something of it: a run of one context, or a prefix that several
have in common. Its queries are cut into blocks, a block's positions into items, so that a small batch fills the GPU
(Flash-Decoding); a query with several items gets a part of the merge for each. Owns nothing; knows no tensors and no
layers' weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from kea.attention.base import Rotary, SequencePlan
from kea.attention.sharing import Segments

UNBOUNDED = 1 << 30
NO_PART = -1
NO_TURN = -1
ITEM_FIELDS = 5  # first entry, number of entries, where position 0's page would stand in the page tables, lo, hi
ENTRY_FIELDS = 5  # row, part, turn, the positions [low, high) that the row sees
MERGE_FIELDS = 3  # row, first part, one past the last

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class WorkKey:
    """What the work of a layer depends on: layers of the same key share it.

    `narrow`, `wide`: the queries of a small and of a large block. `num_kv_heads`: the programs per item.
    """

    window: int | None
    num_kv_heads: int
    narrow: int
    wide: int


@dataclass(frozen=True, slots=True)
class Budget:
    """How far blocks are split: into about `num_programs` programs in all, none shorter than `min_tokens`."""

    num_programs: int
    min_tokens: int

    def num_items(self, key: WorkKey) -> int:
        """Return how many items the splitting may add to the blocks."""
        return max(1, self.num_programs // key.num_kv_heads)


@dataclass(frozen=True, slots=True)
class Stretches:
    """S stretches: `tables` [S], where position 0's page would stand in `pages`; and the entries of stretch s,
    [`bounds`[s], `bounds`[s + 1]): rows, each with the positions [`lows`, `highs`) that it sees, one at least, and the
    number of its turn; and by how many positions each turn rotates.
    """

    pages: Int32
    tables: Int64
    bounds: Int64
    rows: Int64
    lows: Int64
    highs: Int64
    turns: Int64
    angles: Int64


@dataclass(frozen=True, slots=True)
class Work:
    """The kernels' arrays: items [N, 5] of small and of large blocks, entries [N, 5], merges [N, 3], page tables; how
    many partial results the items write; by how many positions the queries of each turn are rotated.
    """

    narrow: Int32
    wide: Int32
    entries: Int32
    merges: Int32
    pages: Int32
    num_parts: int
    angles: Int64


def from_sequences(sequences: tuple[SequencePlan, ...], window: int | None) -> Stretches:
    """Return a stretch for every run of every context, strangers to each other."""
    lengths = [len(sequence.page_table) for sequence in sequences]
    pages = np.fromiter(chain.from_iterable(s.page_table for s in sequences), dtype=np.int32, count=sum(lengths))
    starts = (np.cumsum(lengths, dtype=np.int64) - lengths).tolist()
    table, row, count, first, start, stop, reach, pinned = _columns(_runs(sequences, starts, window))
    offsets = _ramps(count)
    rows = np.repeat(row, count) + offsets
    positions = np.repeat(first, count) + offsets
    angles = np.minimum(0, np.repeat(pinned, count) - positions)
    positions += angles
    lows = np.maximum(np.repeat(start, count), positions - np.repeat(reach, count))
    highs = np.minimum(np.repeat(stop, count), positions + 1)
    seen = lows < highs
    bounds = np.concatenate(([0], np.cumsum(seen)))[np.concatenate(([0], np.cumsum(count)))]
    is_turned = angles[seen] < 0
    turns = np.where(is_turned, np.cumsum(is_turned) - 1, NO_TURN)
    angles = angles[seen][is_turned]
    return _without_empty(Stretches(pages, table, bounds, rows[seen], lows[seen], highs[seen], turns, angles))


def from_segments(segments: Segments, page_tokens: int) -> Stretches:
    """Return a stretch for every segment: what contexts have in common is there once."""
    return Stretches(
        pages=segments.pages.astype(np.int32),
        tables=segments.page_bounds[:-1] - segments.bases // page_tokens,
        bounds=segments.row_bounds,
        rows=segments.rows,
        lows=segments.lows,
        highs=segments.highs,
        turns=np.full(len(segments.rows), NO_TURN),
        angles=np.zeros(0, np.int64),
    )


def plan_work(stretches: Stretches, num_rows: int, key: WorkKey, budget: Budget) -> Work:
    """Return the work of the layers of `key` in a step of so many rows."""
    owner, first, counts = _blocks(stretches.bounds, key)
    lo = np.minimum.reduceat(stretches.lows, first) if len(first) else first
    hi = np.maximum.reduceat(stretches.highs, first) if len(first) else first
    num_chunks, chunk_tokens = _split(hi - lo, key, budget)
    block = np.repeat(np.arange(len(first)), num_chunks)
    lo = lo[block] + _ramps(num_chunks) * chunk_tokens
    hi = np.minimum(hi[block], lo + chunk_tokens)
    counts = counts[block]
    entry = _starts(counts)
    items = np.stack([entry, counts, stretches.tables[owner[block]], lo, hi], axis=1).astype(np.int32)
    order = np.argsort(lo - hi, kind="stable")  # the longest first: what is left at the end is short
    items = items[order]
    member = np.repeat(first[block], counts) + _ramps(counts)
    parts, merges, num_parts = _part(stretches.rows[member], num_rows)
    columns = (stretches.rows, None, stretches.turns, stretches.lows, stretches.highs)
    entries = np.stack([parts if c is None else c[member] for c in columns], axis=1).astype(np.int32)
    is_wide = items[:, 1] > key.narrow
    return Work(items[~is_wide], items[is_wide], entries, merges, stretches.pages, num_parts, stretches.angles)


def _runs(sequences: tuple[SequencePlan, ...], starts: list[int], window: int | None) -> Iterator[tuple[int, ...]]:
    reach = UNBOUNDED if window is None else window - 1
    for sequence, start in zip(sequences, starts, strict=True):
        for run in sequence.runs:
            far = reach if run.left is None else min(reach, run.left)
            pinned = UNBOUNDED if run.pinned is None else run.pinned
            yield start, sequence.row_start, sequence.num_queries, sequence.position, run.start, run.stop, far, pinned


def _columns(table: Iterator[tuple[int, ...]]) -> Int64:
    return np.array(list(table), dtype=np.int64).reshape(-1, 8).T


def _without_empty(stretches: Stretches) -> Stretches:
    """Drop the stretches that no row sees."""
    kept = np.diff(stretches.bounds) > 0
    bounds = np.concatenate(([0], stretches.bounds[1:][kept]))
    return replace(stretches, tables=stretches.tables[kept], bounds=bounds)


def make_turns(angles: Int64, rotary: Rotary) -> NDArray[np.float32]:
    """Return the cosines, then the sines, of each turn [A, D]; the phases are formed in fp64, within one circle."""
    phases = np.remainder(angles[:, None].astype(np.float64) * np.array(rotary.frequencies), 2.0 * np.pi)
    return np.concatenate([np.cos(phases), np.sin(phases)], axis=1).astype(np.float32)


def _blocks(bounds: Int64, key: WorkKey) -> tuple[Int64, Int64, Int64]:
    """Cut the entries of each stretch into blocks; return each one's stretch, first entry and number of entries."""
    totals = np.diff(bounds)
    size = np.where(totals <= key.narrow, key.narrow, key.wide)
    num_blocks = -(-totals // size)
    owner = np.repeat(np.arange(len(totals)), num_blocks)
    first = bounds[:-1][owner] + _ramps(num_blocks) * size[owner]
    return owner, first, np.minimum(size[owner], bounds[1:][owner] - first)


def _split(lengths: Int64, key: WorkKey, budget: Budget) -> tuple[Int64, int]:
    """Return into how many chunks each block's positions are cut, and their length in tokens: one for all of the step.

    Their number is at most that of the blocks and `budget.num_items` together, so that a captured graph can hold it.
    """
    shortest = -(-int(lengths.sum()) // budget.num_items(key))
    chunk_tokens = max(budget.min_tokens, -(-shortest // budget.min_tokens) * budget.min_tokens)
    return -(-lengths // chunk_tokens), chunk_tokens


def _part(rows: Int64, num_rows: int) -> tuple[Int64, Int32, int]:
    """Give every entry of a row that has several a part of its own, side by side; return parts, merges, their number.

    A row without entries is merged of nothing.
    """
    counts = np.bincount(rows, minlength=num_rows)
    num_parts = np.where(counts > 1, counts, 0)
    first = _starts(num_parts)
    rank = np.empty_like(rows)
    rank[np.argsort(rows, kind="stable")] = _ramps(counts)
    parts = np.where(counts[rows] > 1, first[rows] + rank, NO_PART)
    merged = np.flatnonzero(counts != 1)
    merges = np.stack([merged, first[merged], first[merged] + num_parts[merged]], axis=1).astype(np.int32)
    return parts, merges, int(num_parts.sum())


def _starts(counts: Int64) -> Int64:
    """Return where each of some consecutive stretches begins."""
    return np.cumsum(counts) - counts


def _ramps(counts: Int64) -> Int64:
    """Return 0, 1, ... counts[0] - 1, 0, 1, ... counts[1] - 1, and so on."""
    return np.arange(int(counts.sum())) - np.repeat(_starts(counts), counts)

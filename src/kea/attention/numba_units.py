"""Cuts the segments of a step into units of work for the CPU kernels, small enough that no thread waits long for the
last one. Knows no tensors.

A unit is a block of a segment's rows over a stretch of its keys, for all KV heads or for one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kea.attention.sharing import Int64, Segments
from kea.kernels.vectors import WIDTH

MAX_LANES = 192
"""Queries of one KV head in a unit: with more of them, its scores would not stay in the first cache."""

MIN_MANY_LANES = 24
"""Queries of one KV head from which on a unit is for at most MAX_HEADS heads, and costs more to begin and to merge."""

MAX_HEADS = 4
"""With more, what is kept of their queries would not stay in the second cache; with one alone, only a part of each
token's row would be read at a time."""

MIN_TOKENS = 64
UNITS_PER_THREAD, MANY_PER_THREAD = 4, 2
"""Units into which a step is cut; and if all of them were of many queries."""

VECTOR_COST = 0.5
"""To attend with one vector of queries over one token, in the time that it takes to read its key and value."""


@dataclass(frozen=True, slots=True)
class Units:
    """`units` [N, 10], `merged`, `bounds` and `places` as the step's arguments of `numba_kernels` have them.

    `num_spare`: partial results. `rows`: those that see some key.
    """

    units: Int64
    merged: Int64
    bounds: Int64
    places: Int64
    num_spare: int
    rows: Int64


def plan_units(segments: Segments, num_kv: int, group: int, num_threads: int) -> Units:
    """Cut segments into units, the costly ones first; the result of a row that has but one is whole."""
    first, last, owner = _blocks(segments, max(1, MAX_LANES // group))
    if not len(first):
        empty = np.zeros(0, np.int64)
        return Units(np.zeros((0, 10), np.int64), empty, np.zeros(1, np.int64), empty, 0, empty)
    start = np.minimum.reduceat(segments.lows, first)
    stop = np.maximum.reduceat(segments.highs, first)
    is_many = (last - first) * group >= MIN_MANY_LANES
    num_parts = np.where(is_many, _num_parts(num_kv), 1)
    cost = num_kv // num_parts * (1.0 + VECTOR_COST * -(-(last - first) * group // WIDTH))
    num_units = num_threads * np.where(is_many, MANY_PER_THREAD, UNITS_PER_THREAD)
    pieces, length = _pieces(stop - start, cost, num_parts, num_units)
    block = np.repeat(np.arange(len(first)), pieces)  # a line for each stretch of each block
    piece = np.arange(len(block)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = start[block] + piece * length[block]
    end = np.minimum(begin + length[block], stop[block])
    place, merging = _places(segments, first, last, (block, pieces))
    line = np.repeat(np.arange(len(block)), num_parts[block])
    head = np.arange(len(line)) - np.repeat(np.cumsum(num_parts[block]) - num_parts[block], num_parts[block])
    of = block[line]
    width = num_kv // num_parts[of]
    fields = (first[of], last[of], segments.page_bounds[owner[of]], segments.bases[owner[of]], begin[line], end[line])
    following = np.arange(len(line)) + num_threads  # by their places in the order that they get here
    following[following >= len(line)] = -1
    order = np.argsort(-(cost[of] * (end - begin)[line]), kind="stable")
    units = np.stack([*fields, head * width, (head + 1) * width, place[line]], axis=1)[order]
    return Units(np.ascontiguousarray(np.column_stack([units, following])), *merging, rows=np.unique(segments.rows))


def _num_parts(num_kv: int) -> int:
    """Return into how many equal parts to cut the heads."""
    return next(parts for parts in range(1, num_kv + 1) if num_kv % parts == 0 and num_kv // parts <= MAX_HEADS)


def _blocks(segments: Segments, size: int) -> tuple[Int64, Int64, Int64]:
    """Return each block's entries [first, last) and its segment."""
    counts = np.diff(segments.row_bounds)
    num_blocks = -(-counts // size)
    owner = np.repeat(np.arange(len(segments)), num_blocks)
    index = np.arange(len(owner)) - np.repeat(np.cumsum(num_blocks) - num_blocks, num_blocks)
    first = segments.row_bounds[owner] + index * size
    return first, np.minimum(first + size, segments.row_bounds[owner + 1]), owner


def _pieces(num_tokens: Int64, cost: Int64, num_parts: Int64, num_units: Int64) -> tuple[Int64, Int64]:
    """Return in how many stretches each block is cut, and their length."""
    target = (num_tokens * cost * num_parts).sum() / num_units
    wanted = np.ceil(num_tokens * cost / target - 0.25).astype(np.int64)
    pieces = np.clip(wanted, 1, -(-num_tokens // MIN_TOKENS))
    length = -(-num_tokens // pieces // MIN_TOKENS) * MIN_TOKENS
    return -(-num_tokens // length), length


def _places(
    segments: Segments, first: Int64, last: Int64, cut: tuple[Int64, Int64]
) -> tuple[Int64, tuple[Int64, Int64, Int64, int]]:
    """Return each line's place of partial results (-1: whole), and what is to be merged from where.

    `cut`: the block of each line, the lines of each block.
    """
    block, pieces = cut
    size = last - first
    of_row = np.bincount(segments.rows, weights=np.repeat(pieces, size)).astype(np.int64)
    several = np.maximum.reduceat(of_row[segments.rows], first) > 1
    taken = np.where(several, size, 0)[block]
    place = np.cumsum(taken) - taken
    entries = np.repeat(first[block], taken) + np.arange(taken.sum()) - np.repeat(place, taken)
    rows = segments.rows[entries]
    order = np.argsort(rows, kind="stable")
    merged, heads = np.unique(rows[order], return_index=True)
    bounds = np.append(heads, len(rows))
    return np.where(several[block], place, -1), (merged, bounds, order, int(taken.sum()))

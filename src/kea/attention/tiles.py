"""Cuts a step into tiles: contexts whose attention is one dense call over gathered pages. Host-side planning only.

Owns which pages a tile gathers and which of their keys each query sees. Knows no layers' weights, no backends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kea.attention.base import SequencePlan

MAX_BLOCK_QUERIES = 512
MAX_MASK_ELEMENTS = 1 << 22
MAX_TILE_TOKENS = 8192
MIN_BUCKET_PAGES = 8
UNBOUNDED = np.iinfo(np.int64).max // 4

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive queries of one sequence: the rows from `row`, at the positions [start, stop)."""

    sequence: SequencePlan
    row: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Pages of one run that a block gathers: the physical `pages`, the position of the first one's first key, and what
    of them is visible: positions in [lo, hi), at most `reach` behind the query."""

    pages: tuple[int, ...]
    base: int
    lo: int
    hi: int
    reach: int


Member = tuple[Block, list[Stretch]]


@dataclass(frozen=True, slots=True)
class Tile:
    """B blocks of Q queries each over P gathered pages; a shorter block repeats a page of its own, fully masked.

    `pages` [B, P] physical pages, `base` [B, P] the position of each page's first key, `lo`, `hi`, `reach` [B, P] as in
    `Stretch`. `first` [B] the position of each block's first query. `may_be_blind`: some query may see no key.
    """

    rows: tuple[int, ...]
    num_queries: int
    first: Int64
    pages: Int64
    base: Int64
    lo: Int64
    hi: Int64
    reach: Int64
    may_be_blind: bool


def plan_tiles(sequences: tuple[SequencePlan, ...], page_tokens: int, window: int | None) -> list[Tile]:
    """Return the tiles of a step in a layer of this `window`: decode rows of similar length together, chunks alone."""
    tiles: list[Tile] = []
    buckets: dict[int, list[Member]] = {}
    for sequence in sequences:
        if sequence.num_queries == 1:
            block = Block(sequence, sequence.row_start, sequence.position, sequence.position + 1)
            stretches = list(_stretches(block, page_tokens, window))
            bucket = max(_num_pages(stretches), MIN_BUCKET_PAGES).bit_length()
            buckets.setdefault(bucket, []).append((block, stretches))
        else:
            tiles += [
                _tile([(block, list(_stretches(block, page_tokens, window)))], page_tokens)
                for block in _blocks(sequence)
            ]
    return tiles + [_tile(part, page_tokens) for members in buckets.values() for part in _split(members, page_tokens)]


def _split(members: list[Member], page_tokens: int) -> Iterator[list[Member]]:
    """Cut a bucket into tiles of bounded size: it bounds the buffers, and a small copy is still in cache when used."""
    width = max(_num_pages(stretches) for _, stretches in members) * page_tokens
    size = max(1, MAX_TILE_TOKENS // max(1, width))
    return (members[i : i + size] for i in range(0, len(members), size))


def _num_pages(stretches: list[Stretch]) -> int:
    return sum(len(stretch.pages) for stretch in stretches)


def _blocks(sequence: SequencePlan) -> Iterator[Block]:
    end = sequence.position + sequence.num_queries
    size = max(1, min(MAX_BLOCK_QUERIES, MAX_MASK_ELEMENTS // end))
    for start in range(sequence.position, end, size):
        yield Block(sequence, sequence.row_start + start - sequence.position, start, min(start + size, end))


def _stretches(block: Block, page_tokens: int, window: int | None) -> Iterator[Stretch]:
    for run in block.sequence.runs:
        reach = min(
            UNBOUNDED if run.left is None else run.left,
            UNBOUNDED if window is None else window - 1,
        )
        first_visible = max(run.start, block.start - reach)
        stop = min(run.stop, block.stop)
        if first_visible >= stop:
            continue
        page = first_visible // page_tokens
        pages = block.sequence.page_table[page : (stop - 1) // page_tokens + 1]
        yield Stretch(pages, page * page_tokens, run.start, run.stop, reach)


def _tile(members: list[Member], page_tokens: int) -> Tile:
    width = max(1, *(_num_pages(stretches) for _, stretches in members))
    fields = np.zeros((5, len(members), width), dtype=np.int64)
    pages, base, lo, hi, reach = fields
    offsets = np.arange(width, dtype=np.int64) * page_tokens
    for i, (_, stretches) in enumerate(members):
        column = 0
        for stretch in stretches:
            end = column + len(stretch.pages)
            pages[i, column:end] = stretch.pages
            base[i, column:end] = stretch.base + offsets[: end - column]
            lo[i, column:end], hi[i, column:end], reach[i, column:end] = stretch.lo, stretch.hi, stretch.reach
            column = end
        if column:
            pages[i, column:] = pages[i, 0]
    assert pages.min() >= 0, "a page that a run covers is missing from the page table"
    blocks = [block for block, _ in members]
    return Tile(
        rows=tuple(row for block in blocks for row in range(block.row, block.row + block.stop - block.start)),
        num_queries=blocks[0].stop - blocks[0].start,
        first=np.array([block.start for block in blocks], dtype=np.int64),
        pages=pages,
        base=base,
        lo=lo,
        hi=hi,
        reach=reach,
        may_be_blind=any(_may_be_blind(block) for block in blocks),
    )


def _may_be_blind(block: Block) -> bool:
    """A query sees at least itself where its own position lies in a run."""
    return not any(run.start <= block.start and block.stop <= run.stop for run in block.sequence.runs)

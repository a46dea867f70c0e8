"""Products of two blocks of tiles that are both cut into bfloat16 parts (`cutting`). Knows no models, no plans.

The second side always has three parts. Of the nine products of two numbers in three parts, the three that are below the
last bit are left out; numbers of two parts take five products, those of one three.

While the tile unit multiplies, the core's vector units have nothing to do: so the powers of another block's softmax are
taken between the products, a few pairs of rows at a time, and what comes next is fetched from memory.
"""

from __future__ import annotations

from numba import njit

from kea.kernels import tiles
from kea.kernels.cutting import PART_BYTES, ROW_BYTES, STEP_BYTES, fetch_rows, soften_pair
from kea.kernels.tiles import TILE_BYTES

BLOCK = 32
CHUNKS = 6
"""Pieces in which a step's share of the softmax is done."""

Soft = tuple[int, int, int, int, int, int]
Ahead = tuple[int, int, int]


@njit(nogil=True)  # type: ignore[untyped-decorator]
def dot_4() -> None:
    tiles.dot(0, 4, 6)
    tiles.dot(1, 4, 7)
    tiles.dot(2, 5, 6)
    tiles.dot(3, 5, 7)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def soften_some(soft: Soft, first: int, last: int) -> None:
    """Take the powers of some pairs of rows. `soft`: the scores, the state, bytes from one of its rows to the next, the
    scales, where the powers go, how many pairs there are."""
    scores, state, state_bytes, scales, target, num_pairs = soft
    for index in range(first, min(last, num_pairs)):
        soften_pair(index, scores, state, state_bytes, scales, target)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def multiply_32_32(
    a: int, b: int, steps: tuple[int, int], sums: tuple[int, bool], work: tuple[Soft, int, int, Ahead]
) -> None:
    """Write the products of 32 rows and 32 columns, or add them to what is there.

    `steps`: how many, and the parts of the rows. `sums`: where, whether to add. `work`: whose powers are to be taken
    meanwhile, from which pair on, pairs per step; what to fetch: addresses of rows, rows per step, bytes of a row.
    """
    (num_steps, num_parts), (out, adds), (soft, at, quota, (places, num_rows, num_bytes)) = steps, sums, work
    below = out + 16 * ROW_BYTES
    if adds:
        tiles.load(0, out, ROW_BYTES)
        tiles.load(1, out + 64, ROW_BYTES)
        tiles.load(2, below, ROW_BYTES)
        tiles.load(3, below + 64, ROW_BYTES)
    else:
        tiles.zero(0)
        tiles.zero(1)
        tiles.zero(2)
        tiles.zero(3)
    for k in range(num_steps):
        x, y = a + k * STEP_BYTES, b + k * STEP_BYTES
        tiles.load(4, x, 64)
        tiles.load(5, x + TILE_BYTES, 64)
        tiles.load(6, y + 2 * PART_BYTES, 64)
        tiles.load(7, y + 2 * PART_BYTES + TILE_BYTES, 64)
        dot_4()
        soften_some(soft, at, at + quota // 6)
        tiles.load(6, y + PART_BYTES, 64)
        tiles.load(7, y + PART_BYTES + TILE_BYTES, 64)
        dot_4()
        soften_some(soft, at + quota // 6, at + quota // 3)
        if num_parts > 1:
            tiles.load(4, x + PART_BYTES, 64)
            tiles.load(5, x + PART_BYTES + TILE_BYTES, 64)
            dot_4()
        soften_some(soft, at + quota // 3, at + quota // 2)
        fetch_rows(places + 8 * k * num_rows, num_rows, num_bytes)
        tiles.load(6, y, 64)
        tiles.load(7, y + TILE_BYTES, 64)
        dot_4()
        soften_some(soft, at + quota // 2, at + quota * 2 // 3)
        if num_parts > 2:
            tiles.load(4, x + 2 * PART_BYTES, 64)
            tiles.load(5, x + 2 * PART_BYTES + TILE_BYTES, 64)
            dot_4()
        soften_some(soft, at + quota * 2 // 3, at + quota * 5 // 6)
        if num_parts > 1:
            tiles.load(4, x, 64)
            tiles.load(5, x + TILE_BYTES, 64)
            dot_4()
        soften_some(soft, at + quota * 5 // 6, at + quota)
        at += quota
    tiles.store(0, out, ROW_BYTES)
    tiles.store(1, out + 64, ROW_BYTES)
    tiles.store(2, below, ROW_BYTES)
    tiles.store(3, below + 64, ROW_BYTES)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def multiply_32_16(a: int, b: int, steps: tuple[int, int], sums: tuple[int, bool]) -> None:
    """The same for the first 16 columns, and nothing meanwhile; their parts are in registers of their own."""
    (num_steps, num_parts), (out, adds) = steps, sums
    below = out + 16 * ROW_BYTES
    if adds:
        tiles.load(0, out, ROW_BYTES)
        tiles.load(1, below, ROW_BYTES)
    else:
        tiles.zero(0)
        tiles.zero(1)
    for k in range(num_steps):
        x, y = a + k * STEP_BYTES, b + k * STEP_BYTES
        tiles.load(2, y + 2 * PART_BYTES, 64)
        tiles.load(3, y + PART_BYTES, 64)
        tiles.load(4, y, 64)
        for part in range(num_parts):
            tiles.load(5, x + part * PART_BYTES, 64)
            tiles.load(6, x + part * PART_BYTES + TILE_BYTES, 64)
            if part == 0:
                tiles.dot(0, 5, 2)
                tiles.dot(1, 6, 2)
            if part < 2:
                tiles.dot(0, 5, 3)
                tiles.dot(1, 6, 3)
            tiles.dot(0, 5, 4)
            tiles.dot(1, 6, 4)
    tiles.store(0, out, ROW_BYTES)
    tiles.store(1, below, ROW_BYTES)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def multiply_blocks(
    rows: tuple[int, int, int], columns: tuple[int, int], steps: int, sums: tuple[int, bool], work: tuple[Soft, Ahead]
) -> None:
    """Write products of blocks to [32 * blocks, 32], or add them, and do all of the work meanwhile.

    `rows`: where they are cut, how many blocks, their parts. `columns`: where they are cut, how many of 32. `sums`:
    where, whether to add. `work`: as `soften_some` takes it, and addresses of rows to fetch, how many, bytes of a row.
    """
    (a, num_blocks, num_parts), (b, width), (out, adds) = rows, columns, sums
    soft, (places, num_ahead, num_bytes) = work
    total = num_blocks * steps
    if width <= 16:
        soften_some(soft, 0, soft[5])
        fetch_rows(places, num_ahead, num_bytes)
    quota, num_rows = (soft[5] + total - 1) // total, (num_ahead + total - 1) // total
    for block in range(num_blocks):
        at, to = a + block * steps * STEP_BYTES, (out + block * BLOCK * ROW_BYTES, adds)
        if width <= 16:
            multiply_32_16(at, b, (steps, num_parts), to)
        else:
            first = block * steps
            ahead = (places + 8 * first * num_rows, num_rows, num_bytes)
            multiply_32_32(at, b, (steps, num_parts), to, (soft, first * quota, quota, ahead))

"""Attention of many queries of one KV head over a stretch of paged keys, by Intel's tiles. Knows no plans.

Queries are cut into parts once; keys and values of TILE tokens at a time, for all of the unit's queries; the powers of
the softmax as they arise. Everything is summed in fp32. Blocks of 32 queries pass by one after the other: logits are
[TILE, 32], sums [Dv, 32], so that queries lie in the lanes of vectors throughout. See `kea.kernels.cutting`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray
from numpy.typing import NDArray

from kea.kernels.cutting import (
    LANES,
    ROW_BYTES,
    STEP,
    STEP_BYTES,
    cut_columns,
    cut_row,
    cut_turned,
    soften_begin,
    turn_back,
)
from kea.kernels.jit import inner
from kea.kernels.machine import f32_at
from kea.kernels.narrow import BYTES, HALF, WHOLE
from kea.kernels.tile_blocks import BLOCK, multiply_blocks, soften_some
from kea.kernels.tiles import TILE_BYTES, TILE_ROWS
from kea.kernels.vectors import conceal

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

TILE = 128
"""Keys and values that are cut at a time."""

HALF_BLOCK = LANES
LINE_BYTES = 64


@inner
def address_of(array: Any) -> int:
    """Return where an array's values are, signed, so that sums of addresses are whole numbers."""
    return np.int64(array.ctypes.data)  # type: ignore[return-value]


@inner
def aligned(num_bytes: int) -> tuple[U8, int]:
    """Return memory that holds so many bytes, and the address from which it does, at a cache line's begin."""
    room = np.empty(num_bytes + LINE_BYTES, np.uint8)
    return room, (address_of(room) + LINE_BYTES - 1) // LINE_BYTES * LINE_BYTES


@inner
def cut_queries(query: F32, rows: I64, heads: tuple[int, int], factor: np.float32, target: int) -> None:
    """Write the queries of some rows, times `factor`, to blocks of 32 columns, zeros to the rest.

    `query` [T, H, Dk]. `heads`: the first query head, and how many.
    """
    first, group = heads
    depth, count = query.shape[2], rows.shape[0] * group
    steps = depth // STEP
    places, zeros = np.empty(HALF_BLOCK, np.int64), np.zeros(depth, np.float32)
    for lane in range(0, count, HALF_BLOCK):
        for i in range(HALF_BLOCK):
            m = lane + i
            places[i] = address_of(zeros)
            if m < count:
                places[i] = address_of(query) + 4 * depth * (rows[m // group] * query.shape[1] + first + m % group)
        to = target + lane // BLOCK * steps * STEP_BYTES + lane % BLOCK // HALF_BLOCK * TILE_BYTES
        cut_columns(address_of(places), steps, factor, to)


@inner
def cut_keys(form: int, rows: tuple[I64, int], depth: int, target: int) -> None:
    """Write keys to blocks of 32 rows. `rows`: where tokens' keys begin, and how far behind the head's."""
    places, offset = rows
    steps = depth // STEP
    for j in range(places.shape[0]):
        to = target + j // BLOCK * steps * STEP_BYTES + j % BLOCK // TILE_ROWS * TILE_BYTES + j % TILE_ROWS * LINE_BYTES
        if form == WHOLE:
            cut_row(WHOLE, places[j] + offset, steps, to)
        elif form == HALF:
            cut_row(HALF, places[j] + offset, steps, to)
        else:
            cut_row(BYTES, places[j] + offset, steps, to)


@inner
def cut_values(form: int, rows: tuple[I64, int], size: int, target: int) -> None:
    """Write values, a multiple of 32, to blocks of 32 dimensions."""
    places, offset = rows
    steps = places.shape[0] // STEP
    for step in range(steps):
        source, to = address_of(places) + 8 * STEP * step, target + step * STEP_BYTES
        if form == WHOLE:
            cut_turned(WHOLE, source, offset, size, to, steps * STEP_BYTES)
        elif form == HALF:
            cut_turned(HALF, source, offset, size, to, steps * STEP_BYTES)
        else:
            cut_turned(BYTES, source, offset, size, to, steps * STEP_BYTES)


@inner
def scale_logits(scores: F32, scales: F32, count: int) -> None:
    for j in range(count):
        for lane in range(BLOCK):
            scores[j, lane] *= scales[j]


@inner
def cap_logits(scores: F32, count: int, limit: np.float32) -> None:
    for j in range(count):
        for lane in range(BLOCK):
            scores[j, lane] = limit * np.tanh(scores[j, lane] / limit)


@inner
def shrink_columns(sums: F32, factors: F32) -> None:
    """Multiply the columns of sums [Dv, 32] by factors, where one is not 1."""
    is_same = True
    for lane in range(factors.shape[0]):
        is_same &= factors[lane] == np.float32(1.0)
    if not is_same:
        for d in range(sums.shape[0]):
            for lane in range(factors.shape[0]):
                sums[d, lane] *= factors[lane]


@inner
def read_scales(rows: tuple[I64, int], size: int, out: F32) -> None:
    """Read what stands behind rows of `size` int8."""
    places, offset = rows
    for j in range(places.shape[0]):
        out[j] = carray(f32_at(places[j] + offset + size), 1)[0]


@inner
def begin_block(
    scores: F32,
    tile: tuple[int, int, int],
    block: tuple[F32, I32, F32, F32],
    lane: int,
    checks: tuple[bool, bool, np.float32],
) -> None:
    """Make the logits of a block of up to 32 queries ready for their powers, and take their largest into the state.

    `tile`: its first position, its keys, these up to a multiple of 32. `block`: state [2, width], bounds [2, width],
    scales of the keys [TILE], factors [32]. `lane`: the block's first. `checks`: whether some query does not see all
    of the keys, whether the logits are to be scaled, their limit.
    """
    first, num_keys, padded = tile
    state, bounds, scales, factors = block
    is_edge, is_scaled, limit = checks
    width = state.shape[1]
    if is_scaled:
        scale_logits(scores, scales, num_keys)
    if limit > 0:
        cap_logits(scores, num_keys, limit)
    scores[num_keys:padded] = -np.inf
    for half in range(0, min(BLOCK, width - lane), HALF_BLOCK):
        if is_edge:
            conceal(scores, half, BLOCK, num_keys, bounds, lane + half, width, first)
        at = address_of(state) + 4 * (lane + half)
        soften_begin(address_of(scores) + 4 * half, padded, at, 4 * width, address_of(factors) + 4 * half)


@inner
def locate_rows(
    locating: tuple[I64, tuple[int, int, int], tuple[int, int]], span: tuple[int, int], bases: tuple[int, int], out: I64
) -> None:
    """Write the addresses of the keys and the values of the positions of a span to `out` [2 or more, TILE].

    `locating`: page numbers; the first page, its position, tokens per page; bytes of a token's keys and values.
    """
    pages, (first, base, page_tokens), strides = locating
    start, stop = span
    j = start
    while j < stop:
        index = (j - base) // page_tokens
        begin = base + index * page_tokens
        slot = pages[first + index] * page_tokens + j - begin
        key, value = bases[0] + slot * strides[0], bases[1] + slot * strides[1]
        end = min(stop, begin + page_tokens)
        for i in range(end - j):
            out[0, j - start + i], out[1, j - start + i] = key + i * strides[0], value + i * strides[1]
        j = end


@inner
def attend_stretch(  # noqa: C901, PLR0912, PLR0915, PLR0917
    span: tuple[int, int, int],
    locating: tuple[I64, tuple[int, int, int], tuple[int, int]],
    caches: tuple[int, int, int, tuple[int, int]],
    cut: tuple[int, int, int, int],
    block: tuple[F32, F32, I32],
    limits: tuple[int, int, np.float32],
) -> None:
    """Take a stretch of keys of some heads into the sums of a block of queries.

    `span`: first position, end, dimensions of a key. `locating`: as `locate_rows` takes it. `caches`: the format, where
    the first head's keys and values begin, bytes of a head's key and value. `cut`: where queries, keys, values and
    powers are or come to be cut. `block`: state [heads, 2, width], sums [heads, width / 32, Dv, 32], bounds.
    `limits`: the highest low, the lowest high, the logits' limit.

    Blocks of 32 queries go through three stages, of which two are those of other blocks: while the powers of one are
    taken, the values of the one before are weighed, then the logits of the next one multiplied.
    """
    start, stop, depth = span
    form, key_base, value_base, head_bytes = caches
    queries, keys, values, powers = cut
    state, sums, bounds = block
    num_heads, width, size = state.shape[0], state.shape[2], sums.shape[2]
    num_blocks, steps = sums.shape[1], depth // STEP
    num_parts = 3 if form == WHOLE else 2 if form == HALF else 1
    scores, factors = np.empty((2, TILE, BLOCK), np.float32), np.empty((2, BLOCK), np.float32)
    scales, zeros = np.ones((2, TILE), np.float32), np.zeros(num_heads * (size + 1), np.float32)
    places, ahead = np.zeros((4, TILE), np.int64), np.zeros((4, TILE), np.int64)
    share = 2 * TILE // (2 * num_heads * num_blocks) + 1
    nothing, none_ahead = (0, 0, 0, 0, 0, 0), (0, 0, 0)
    late = (0, 0, 0, 0, 0)
    at = 0
    locate_rows(locating, (start, min(start + TILE, stop)), (key_base, value_base), ahead)
    cut_keys(form, (ahead[0, : min(TILE, stop - start)], 0), depth, keys)
    if form == BYTES:
        read_scales((ahead[0, : min(TILE, stop - start)], 0), depth, scales[0])
    rows = (keys, (min(TILE, stop - start) + STEP - 1) // STEP, num_parts)
    columns = (queries, min(width, BLOCK))
    multiply_blocks(rows, columns, steps, (address_of(scores), False), (nothing, none_ahead))
    for lo in range(start, stop, TILE):
        hi = min(lo + TILE, stop)
        end = min(hi + TILE, stop)
        places, ahead = ahead, places
        padded = (hi - lo + STEP - 1) // STEP * STEP
        places[1, hi - lo : padded] = address_of(zeros)
        locate_rows(locating, (hi, end), (key_base, value_base), ahead)
        is_edge = lo < limits[0] or hi > limits[1]
        fetching = address_of(ahead)
        for head in range(num_heads):
            value_rows = (places[1, :padded], head * head_bytes[1])
            if form == BYTES:
                read_scales(value_rows, size, scales[1])
            for b in range(num_blocks):
                count = min(BLOCK, width - b * BLOCK)
                checks = (is_edge, form == BYTES, limits[2])
                parts = (state[head], bounds, scales[0], factors[at])
                begin_block(scores[at], (lo, hi - lo, padded), parts, b * BLOCK, checks)
                source, above = address_of(scores[at]), address_of(state[head]) + 4 * b * BLOCK
                to, scaling = powers + at * (TILE // STEP * STEP_BYTES), address_of(scales[1])
                soft = (source, above, 4 * width, scaling, to, padded // 2)
                to_fetch = (fetching, share, num_heads * head_bytes[0])
                if late[1] > 0:
                    late_sums = sums[late[4], late[0]]
                    shrink_columns(late_sums, factors[1 - at, : late[1]])
                    rows, into = (values, size // BLOCK, num_parts), (address_of(late_sums), True)
                    multiply_blocks(rows, (late[2], late[1]), late[3], into, (soft, to_fetch))
                else:
                    soften_some(soft, 0, soft[5])
                if b == 0:
                    cut_values(form, value_rows, size, values)
                soft = nothing
                if count > HALF_BLOCK:
                    soft = (source + 64, above + 64, 4 * width, scaling, to + TILE_BYTES, padded // 2)
                is_last, is_over = b + 1 == num_blocks, head + 1 == num_heads
                next_head = head if not is_last else 0 if is_over else head + 1
                num_rows = end - hi if is_last and is_over else hi - lo
                if is_last and num_rows > 0:
                    key_rows = (
                        (ahead[0, :num_rows], 0) if is_over else (places[0, :num_rows], next_head * head_bytes[0])
                    )
                    cut_keys(form, key_rows, depth, keys)
                    if form == BYTES:
                        read_scales(key_rows, depth, scales[0])
                if num_rows > 0:
                    next_block = 0 if is_last else b + 1
                    rows = (keys, (num_rows + STEP - 1) // STEP, num_parts)
                    columns = (
                        queries + (next_head * num_blocks + next_block) * steps * STEP_BYTES,
                        min(BLOCK, width - next_block * BLOCK),
                    )
                    to_fetch = (fetching + 8 * share, share, num_heads * head_bytes[0])
                    multiply_blocks(rows, columns, steps, (address_of(scores[1 - at]), False), (soft, to_fetch))
                else:
                    soften_some(soft, 0, soft[5])
                late = (b, count, to, padded // STEP, head)
                at = 1 - at
                fetching += 16 * share
    late_sums = sums[late[4], late[0]]
    shrink_columns(late_sums, factors[1 - at, : late[1]])
    rows, into = (values, size // BLOCK, num_parts), (address_of(late_sums), True)
    multiply_blocks(rows, (late[2], late[1]), late[3], into, (nothing, none_ahead))


@inner
def rows_of(sums: F32, out: F32) -> None:
    """Write sums [blocks, Dv, 32] to rows [width, Dv]."""
    for m in range(0, out.shape[0], HALF_BLOCK):
        for d in range(0, out.shape[1], HALF_BLOCK):
            source = address_of(sums[m // BLOCK]) + d * ROW_BYTES + m % BLOCK * 4
            turn_back(source, address_of(out) + 4 * (m * out.shape[1] + d), 4 * out.shape[1])

"""The kernel of a unit's attention, and how units with few queries of a KV head are computed: those of decode steps.

Few queries are multiplied with a vector's worth of keys at a time (`kea.kernels.few`), for all heads of a group of
tokens before the next one, which is brought nearer meanwhile. Knows no plans.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray
from numpy.typing import NDArray

from kea.attention.numba_cache import item_bytes, row_width
from kea.attention.numba_kernels import (
    FORMAT,
    HIGHS,
    KEY_DIM,
    KEYS,
    LOG2_E,
    LOWS,
    NUM_ENTRIES,
    NUM_HEADS,
    NUM_KV,
    NUM_LAYER,
    NUM_PAGES,
    NUM_ROWS,
    NUM_STEP,
    NUM_UNITS,
    PAGE_TOKENS,
    PAGES,
    QUERY,
    ROWS_SEEN,
    SCALE,
    SOFTCAP,
    STEP,
    UNIT_FIELDS,
    UNITS,
    VALUE_DIM,
    VALUES,
    attend_many,
    cap,
    finish,
)
from kea.kernels.few import MAX_QUERIES, dots_of, scale_few, soften_few, weigh_few
from kea.kernels.jit import inner
from kea.kernels.machine import f32_at, i64_at, number_at
from kea.kernels.narrow import BYTES, HALF, WHOLE
from kea.kernels.program import Kernel
from kea.kernels.vectors import LINE_BYTES, LOWEST, VECTORS, WIDTH

MAX_FEW = 8
"""Queries of a KV head up to which each is multiplied with a key by itself: a vector of them would be half empty."""

SCORES = MAX_QUERIES * WIDTH
"""The room for scores at the front of a block's memory."""

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@inner
def place_tokens(
    pages: I64, layout: tuple[int, int, int], span: tuple[int, int], memory: tuple[int, int, int, int], out: I64
) -> None:
    """Write where the keys and the values of up to WIDTH positions begin to `out` [2, WIDTH]; the last one's again to
    the end.

    `layout`: the first page, its position, tokens per page. `memory`: where the cache's keys begin, the bytes of a
    token there; the same of values.
    """
    first, base, page_tokens = layout
    page = (span[0] - base) // page_tokens
    within = span[0] - base - page * page_tokens
    for i in range(WIDTH):
        if i < span[1] - span[0]:
            slot = pages[first + page] * page_tokens + within
            out[0, i], out[1, i] = memory[0] + slot * memory[1], memory[2] + slot * memory[3]
            within += 1
            if within == page_tokens:
                page, within = page + 1, 0
        else:
            out[0, i], out[1, i] = out[0, i - 1], out[1, i - 1]


@inner
def conceal_few(memory: int, count: int, bounds: int, span: tuple[int, int]) -> None:
    """Set the logits of the positions of a span that a query does not see to -inf. At `bounds` is from where to where
    each query sees, [count, 2]."""
    scores, seen = carray(f32_at(memory), (count, WIDTH)), carray(i64_at(bounds), (count, 2))
    for m in range(count):
        low, high = seen[m, 0], min(seen[m, 1], span[1])
        for i in range(WIDTH):
            if not low <= span[0] + i < high:
                scores[m, i] = -np.float32(np.inf)


def step_of(form: int, count: int) -> Any:
    """Return a function that takes a group of tokens of one KV head into the sums of `count` queries."""
    dots, soften = dots_of(form, count), soften_few(count)
    weigh_all, weigh_1 = weigh_few(form, count, VECTORS), weigh_few(form, count, 1)

    @inner
    def step(
        memory: int,
        places: tuple[int, int, int, int, int, int],
        rows: tuple[int, int, int, int, int, int],
        seen: tuple[int, int, int, bool],
        limit: np.float32,
    ) -> None:
        """`places`: where queries, their sums of powers and of values, and tops lie, the size of a row of sums, and how
        many queries. `rows`: where the group's tokens and those to come are, where the head's keys and values
        begin there, their dimensions. `seen`: see `conceal_few`; whether some query does not see some position.
        """
        q, u, o, t, stride, _ = places
        tokens, ahead, key_head, value_head, key_dim, value_dim = rows
        dots(tokens, key_head, key_dim, memory, q, 0, ahead)
        if form == BYTES:
            scale_few(tokens, key_head, key_dim, memory, 0, count)
        if limit > 0:
            cap(carray(f32_at(memory), (count, WIDTH)), count, limit)
        if seen[3]:
            conceal_few(memory, count, seen[0], (seen[1], seen[2]))
        soften(memory, 0, t, u, o, stride)
        tokens, ahead = tokens + 8 * WIDTH, ahead + 8 * WIDTH
        if form == BYTES:
            scale_few(tokens, value_head, value_dim, memory, 0, count)
        first, num = 0, seen[2] - seen[1]
        while first + VECTORS * WIDTH <= value_dim:
            weigh_all(tokens, value_head, num, first, 0, memory, 0, o, stride, ahead)
            first += VECTORS * WIDTH
        while first < value_dim:
            weigh_1(tokens, value_head, num, first, value_dim - first, memory, 0, o, stride, ahead)
            first += WIDTH

    return step


def steps_of(form: int) -> Any:
    """Return such a function for any count of queries up to MAX_QUERIES."""
    one, two, three, four = (step_of(form, min(count, MAX_QUERIES)) for count in (1, 2, 3, 4))

    @inner
    def steps(
        memory: int,
        places: tuple[int, int, int, int, int, int],
        rows: tuple[int, int, int, int, int, int],
        seen: tuple[int, int, int, bool],
        limit: np.float32,
    ) -> None:
        count = places[5]
        if count == 1:
            one(memory, places, rows, seen, limit)
        elif count == 2:
            two(memory, places, rows, seen, limit)
        elif count == 3:
            three(memory, places, rows, seen, limit)
        else:
            four(memory, places, rows, seen, limit)

    return steps


whole_steps, half_steps, byte_steps = (steps_of(form) for form in (WHOLE, HALF, BYTES))


@inner
def cleared(size: int) -> F32:
    """Return zeros that begin at a cache line."""
    raw = np.zeros(size + LINE_BYTES // 4, np.float32)
    start = (-raw.ctypes.data % LINE_BYTES) // 4
    return raw[start : start + size]


@inner
def query_bounds(entries: tuple[I64, I64, I64], group: int) -> I64:
    """Return from where to where each query sees, [queries, 2]: those of a row one behind the other."""
    _, lows, highs = entries
    bounds = np.empty((lows.shape[0] * group, 2), np.int64)
    for n in range(bounds.shape[0]):
        bounds[n, 0], bounds[n, 1] = lows[n // group], highs[n // group]
    return bounds


@inner
def block_shape(a: I64, num: int) -> tuple[int, int, int, int]:
    """Return the size of a head's part of the memory, with `num` queries; where in it the sums of their powers, the
    sums of values and the tops begin. Queries are at the front, rows are of whole vectors; scores are before it all."""
    depth, size = (a[KEY_DIM] + WIDTH - 1) // WIDTH * WIDTH, (a[VALUE_DIM] + WIDTH - 1) // WIDTH * WIDTH
    tops = num * (depth + WIDTH + size)
    return tops + WIDTH, num * depth, num * (depth + WIDTH), tops


@inner
def placed_block(address: int, a: I64, num_rows: int, rows: I64, heads: tuple[int, int]) -> F32:
    """Return the memory of a block of rows and the KV heads of a unit, with their queries."""
    head, num_heads = heads
    group, dim = a[NUM_HEADS] // a[NUM_KV], a[KEY_DIM]
    num, depth = rows.shape[0] * group, (dim + WIDTH - 1) // WIDTH * WIDTH
    size, _, _, tops = block_shape(a, num)
    memory = cleared(SCORES + num_heads * size)
    query = carray(f32_at(a[QUERY]), (num_rows, a[NUM_HEADS], dim))
    factor = number_at(address + 8 * SCALE) * LOG2_E
    for h in range(num_heads):
        for m in range(num):
            source, to = query[rows[m // group], (head + h) * group + m % group], SCORES + h * size + m * depth
            for d in range(dim):
                memory[to + d] = source[d] * factor
            memory[SCORES + h * size + tops + m] = LOWEST
    return memory


@inner
def finish_block(a: I64, s: I64, rows: I64, heads: tuple[int, int, int], memory: F32) -> None:
    """Write the results of a block. `heads`: the first KV head, their number, the part as `finish` has it."""
    head, num_heads, part = heads
    num = rows.shape[0] * (a[NUM_HEADS] // a[NUM_KV])
    size, powers, sums, tops = block_shape(a, num)
    state = np.empty((2, num), np.float32)
    for h in range(num_heads):
        block = memory[SCORES + h * size : SCORES + (h + 1) * size]
        for m in range(num):
            state[0, m] = block[tops + m]
            state[1, m] = block[powers + m * WIDTH : powers + (m + 1) * WIDTH].sum()
        finish(a, s, rows, (head + h, part), (state, block[sums:tops].reshape(num, (tops - sums) // num)))


@inner
def attend_few(address: int, a: I64, s: I64, unit: I64, entries: tuple[I64, I64, I64]) -> None:
    """Attend from few queries of each KV head. `entries`: the rows, from where and to where they see."""
    start, stop, head = unit[4], unit[5], unit[6]
    num_heads, group, dims = unit[7] - head, a[NUM_HEADS] // a[NUM_KV], (a[KEY_DIM], a[VALUE_DIM])
    num = entries[0].shape[0] * group
    at_once = num if num <= MAX_QUERIES else min((num + 1) // 2, MAX_QUERIES)
    memory = placed_block(address, a, s[NUM_ROWS], entries[0], (head, num_heads))
    size, powers, sums, tops = block_shape(a, num)
    depth, stride = powers // num, (tops - sums) // num
    bounds = query_bounds(entries, group)
    highest_low, lowest_high = entries[1].max(), entries[2].min()
    limit, form = number_at(address + 8 * SOFTCAP) * LOG2_E, a[FORMAT]
    key_bytes, value_bytes = (row_width(form, dims[0]) * item_bytes(form), row_width(form, dims[1]) * item_bytes(form))
    cache = (a[KEYS], a[NUM_KV] * key_bytes, a[VALUES], a[NUM_KV] * value_bytes)
    layout = (unit[2], unit[3], s[PAGE_TOKENS])
    pages = carray(i64_at(s[PAGES]), s[NUM_PAGES])
    tokens, ahead = np.empty((2, WIDTH), np.int64), np.empty((2, WIDTH), np.int64)
    place_tokens(pages, layout, (start, min(start + WIDTH, stop)), cache, tokens)
    for lo in range(start, stop, WIDTH):
        hi = min(lo + WIDTH, stop)
        place_tokens(pages, layout, (min(hi, stop - 1), min(hi + WIDTH, stop)), cache, ahead)
        is_edge = lo < highest_low or hi > lowest_high or hi - lo < WIDTH
        for h in range(num_heads):
            block = SCORES + h * size
            for m in range(0, num, at_once):
                at = (block + m * depth, block + powers + m * WIDTH, block + sums + m * stride, block + tops + m)
                places = (*at, stride, min(at_once, num - m))
                rows = (tokens.ctypes.data, ahead.ctypes.data, (head + h) * key_bytes, (head + h) * value_bytes, *dims)
                seen = (bounds.ctypes.data + 16 * m, lo, hi, is_edge)
                if form == WHOLE:
                    whole_steps(memory.ctypes.data, places, rows, seen, limit)
                elif form == HALF:
                    half_steps(memory.ctypes.data, places, rows, seen, limit)
                else:
                    byte_steps(memory.ctypes.data, places, rows, seen, limit)
        tokens, ahead = ahead, tokens
    finish_block(a, s, entries[0], (head, num_heads, unit[8]), memory)


def attend(address: int, chunk: int) -> None:
    """Attend from the entries of one unit over its stretch of keys."""
    a = carray(i64_at(address), NUM_LAYER)
    s = carray(i64_at(a[STEP]), NUM_STEP)
    unit = carray(i64_at(s[UNITS]), (s[NUM_UNITS], UNIT_FIELDS))[chunk]
    rows = carray(i64_at(s[ROWS_SEEN]), s[NUM_ENTRIES])[unit[0] : unit[1]]
    lows = carray(i64_at(s[LOWS]), s[NUM_ENTRIES])[unit[0] : unit[1]]
    highs = carray(i64_at(s[HIGHS]), s[NUM_ENTRIES])[unit[0] : unit[1]]
    if rows.shape[0] * (a[NUM_HEADS] // a[NUM_KV]) <= MAX_FEW:
        attend_few(address, a, s, unit, (rows, lows, highs))
    else:
        attend_many(address, a, s, unit, (rows, lows, highs))


ATTEND = Kernel(attend)

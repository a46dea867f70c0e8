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
    finish_query,
)
from kea.kernels.few import MAX_QUERIES, QUAD, dots_of, scale_few, soften_few, weigh_few
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
    count, done = span[1] - span[0], 0
    while done < count:
        slot, num = pages[first + page] * page_tokens + within, min(count - done, page_tokens - within)
        for i in range(num):
            out[0, done + i] = memory[0] + (slot + i) * memory[1]
            out[1, done + i] = memory[2] + (slot + i) * memory[3]
        done, page, within = done + num, page + 1, 0
    for i in range(count, WIDTH):
        out[0, i], out[1, i] = out[0, count - 1], out[1, count - 1]


@inner
def place_ahead(tokens: I64, out: I64) -> None:
    """Write where such rows are to `out` [WIDTH * 2] in the order in which they are fetched ahead: keys and values in
    turn, one of each of QUAD stretches in turn, so that what the processor fetches ahead by itself is fetched in all of
    them."""
    for n in range(WIDTH):
        token = n % QUAD * (WIDTH // QUAD) + n // QUAD
        out[2 * n], out[2 * n + 1] = tokens[0, token], tokens[1, token]


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
        many queries. `rows`: where the group's tokens and those to be fetched are, where the head's keys and values
        begin there, their dimensions. `seen`: see `conceal_few`; whether some query does not see some position.
        """
        q, u, o, t, stride, _ = places
        tokens, ahead, key_head, value_head, key_dim, value_dim = rows
        dots(tokens, key_head, key_dim, memory, q, 0, ahead, value_head)
        if form == BYTES:
            scale_few(tokens, key_head, key_dim, memory, 0, count)
        if limit > 0:
            cap(carray(f32_at(memory), (count, WIDTH)), count, limit)
        if seen[3]:
            conceal_few(memory, count, seen[0], (seen[1], seen[2]))
        soften(memory, 0, t, u, o, stride)
        tokens += 8 * WIDTH
        if form == BYTES:
            scale_few(tokens, value_head, value_dim, memory, 0, count)
        first, num = 0, seen[2] - seen[1]
        while first + VECTORS * WIDTH <= value_dim:
            weigh_all(tokens, value_head, num, first, 0, memory, 0, o, stride, ahead, key_head)
            first += VECTORS * WIDTH
        while first < value_dim:
            weigh_1(tokens, value_head, num, first, value_dim - first, memory, 0, o, stride, ahead, key_head)
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
def place_block(address: int, a: I64, rows: I64, heads: tuple[int, int], memory: int) -> None:
    """Write the queries of a block of rows and the KV heads of a unit to its memory, and that no logit was seen."""
    head, num_heads = heads
    group, dim = a[NUM_HEADS] // a[NUM_KV], a[KEY_DIM]
    num, depth = rows.shape[0] * group, (dim + WIDTH - 1) // WIDTH * WIDTH
    size, _, _, tops = block_shape(a, num)
    factor = number_at(address + 8 * SCALE) * LOG2_E
    for h in range(num_heads):
        block = memory + 4 * h * size
        lowest = carray(f32_at(block + 4 * tops), num)
        for r in range(rows.shape[0]):
            source = a[QUERY] + 4 * dim * (rows[r] * a[NUM_HEADS] + (head + h) * group)
            for g in range(group):
                query = carray(f32_at(source + 4 * dim * g), dim)
                out = carray(f32_at(block + 4 * depth * (r * group + g)), dim)
                for d in range(dim):
                    out[d] = query[d] * factor
                lowest[r * group + g] = LOWEST


@inner
def finish_block(a: I64, s: I64, rows: I64, heads: tuple[int, int, int], memory: int) -> None:
    """Write the results of a block. `heads`: the first KV head, their number, the part as `finish` has it."""
    head, num_heads, part = heads
    group = a[NUM_HEADS] // a[NUM_KV]
    num = rows.shape[0] * group
    size, powers, sums, tops = block_shape(a, num)
    stride = (tops - sums) // num
    for h in range(num_heads):
        block = carray(f32_at(memory + 4 * h * size), size)
        for r in range(rows.shape[0]):
            for g in range(group):
                m = r * group + g
                total = np.float32(0.0)
                for i in range(WIDTH):
                    total += block[powers + m * WIDTH + i]
                to = (rows[r], (head + h) * group + g, part + r if part >= 0 else -1)
                finish_query(a, s, to, (block[tops + m], total), memory + 4 * (h * size + sums + m * stride))


@inner
def place_next(s: I64, unit: I64, position: int, cache: tuple[int, int, int, int], out: I64) -> None:
    """Write where the tokens are that a thread reads next: those of a unit from `position` on or, behind its last one,
    the first ones of the unit that the thread will probably take next; there, this unit's last one stands for none."""
    start, stop, first, base = position, unit[5], unit[2], unit[3]
    if position >= stop:
        start = stop - 1
        if unit[9] >= 0:
            following = carray(i64_at(s[UNITS]), (s[NUM_UNITS], UNIT_FIELDS))[unit[9]]
            start, stop, first, base = following[4], following[5], following[2], following[3]
    pages = carray(i64_at(s[PAGES]), s[NUM_PAGES])
    place_tokens(pages, (first, base, s[PAGE_TOKENS]), (start, min(start + WIDTH, stop)), cache, out)


@inner
def attend_few(address: int, a: I64, s: I64, unit: I64, entries: tuple[I64, I64, I64]) -> None:
    """Attend from few queries of each KV head. `entries`: the rows, from where and to where they see."""
    start, stop, head = unit[4], unit[5], unit[6]
    num_heads, group, dims = unit[7] - head, a[NUM_HEADS] // a[NUM_KV], (a[KEY_DIM], a[VALUE_DIM])
    num = entries[0].shape[0] * group
    at_once = num if num <= MAX_QUERIES else min((num + 1) // 2, MAX_QUERIES)
    size, powers, sums, tops = block_shape(a, num)
    memory = cleared(SCORES + num_heads * size)
    scores = memory.ctypes.data
    place_block(address, a, entries[0], (head, num_heads), scores + 4 * SCORES)
    depth, stride = powers // num, (tops - sums) // num
    bounds = query_bounds(entries, group)
    highest_low, lowest_high = entries[1].max(), entries[2].min()
    limit, form = number_at(address + 8 * SOFTCAP) * LOG2_E, a[FORMAT]
    key_bytes, value_bytes = (row_width(form, dims[0]) * item_bytes(form), row_width(form, dims[1]) * item_bytes(form))
    cache = (a[KEYS], a[NUM_KV] * key_bytes, a[VALUES], a[NUM_KV] * value_bytes)
    tokens, following = np.empty((2, WIDTH), np.int64), np.empty((2, WIDTH), np.int64)
    ahead = np.empty(2 * WIDTH, np.int64)
    place_next(s, unit, start, cache, tokens)
    for lo in range(start, stop, WIDTH):
        hi = min(lo + WIDTH, stop)
        place_next(s, unit, hi, cache, following)
        place_ahead(following, ahead)
        is_edge = lo < highest_low or hi > lowest_high or hi - lo < WIDTH
        for h in range(num_heads):
            block = SCORES + h * size
            for m in range(0, num, at_once):
                at = (block + m * depth, block + powers + m * WIDTH, block + sums + m * stride, block + tops + m)
                places = (*at, stride, min(at_once, num - m))
                rows = (tokens.ctypes.data, ahead.ctypes.data, (head + h) * key_bytes, (head + h) * value_bytes, *dims)
                seen = (bounds.ctypes.data + 16 * m, lo, hi, is_edge)
                if form == WHOLE:
                    whole_steps(scores, places, rows, seen, limit)
                elif form == HALF:
                    half_steps(scores, places, rows, seen, limit)
                else:
                    byte_steps(scores, places, rows, seen, limit)
        tokens, following = following, tokens
    finish_block(a, s, entries[0], (head, num_heads, unit[8]), scores + 4 * SCORES)
    memory[0] = np.float32(0.0)  # alive until here


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

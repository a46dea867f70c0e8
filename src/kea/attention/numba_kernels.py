"""The kernels of the backend `numba`: attention of blocks of queries over stretches of paged keys. Knows no plans.

A block is some rows of the batch and, for one KV head, the query heads that it serves: its queries lie side by side in
the lanes of vectors. Keys and values are read where they are, or widened to fp32 a tile at a time; scores exist for
TILE keys at a time. Each kernel is a function of the address of its arguments and a chunk, see `kea.kernels.program`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray
from numpy.typing import NDArray

from kea.attention.numba_cache import item_bytes, places_within, row_width, tile_source, widen, write_head, write_row
from kea.kernels.jit import inner
from kea.kernels.machine import f32_at, i64_at, number_at
from kea.kernels.narrow import WHOLE
from kea.kernels.program import Kernel
from kea.kernels.vectors import (
    LANES,
    LOWEST,
    ROWS,
    TOKENS,
    VECTORS,
    WIDTH,
    conceal,
    fetch,
    scores_of,
    soften,
    weigh_by,
)

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

TILE = 64
STORE_ROWS = 8
LOG2_E = np.float32(1.4426950408889634)

# Arguments of a layer: addresses, sizes, SCALE and SOFTCAP (0: none) as bits of fp64; SINKS is 0 where there are none.
# FORMAT is that of the rows of KEYS and VALUES, [slots, KV, D or more], see `kea.kernels.narrow`.
# OUT is [T, OUT_WIDTH], its rows beginning with [H, Dv]; SPARE is where a row's sums are kept, [NUM_SPARE, H, Dv] and
# [2, NUM_SPARE, H] behind. STEP is the address of the step's arguments.
(QUERY, KEY, VALUE, OUT, OUT_WIDTH, KEYS, VALUES, NUM_SLOTS, NUM_HEADS, NUM_KV, KEY_DIM, VALUE_DIM, SCALE, SOFTCAP,
 SINKS, SPARE, STEP, FORMAT, NUM_LAYER) = range(19)  # fmt: skip

# Arguments of a step, in layers of one shape and window: the new rows' SLOTS [T]; PAGES, ROWS, LOWS and HIGHS as in
# `Segments`; UNITS [N, 10]: first entry, last, place of the first page, its position, start, stop, first KV head, last,
# place of the first partial result (-1: the result is whole), the unit that the same thread will probably take next
# (-1: none). MERGED [N] rows, the BOUNDS [N + 1] of their PLACES.
# HAS_BLIND: whether some row sees nothing. TABLES [T] is that of `Segments`.
(SLOTS, NUM_ROWS, PAGES, NUM_PAGES, ROWS_SEEN, LOWS, HIGHS, NUM_ENTRIES, UNITS, NUM_UNITS, PAGE_TOKENS, NUM_SPARE,
 MERGED, BOUNDS, PLACES, NUM_MERGED, NUM_PLACES, HAS_BLIND, TABLES, NUM_STEP) = range(20)  # fmt: skip

UNIT_FIELDS = 10

scores_1, scores_2, scores_3 = (scores_of(lanes) for lanes in (1, 2, LANES))
weigh_1, weigh_2, weigh_3, weigh_4 = (weigh_by(vectors) for vectors in (1, 2, 3, 4))


@inner
def place_queries(query: F32, rows: I64, heads: tuple[int, int, int], factor: np.float32, out: F32) -> None:
    """Write the queries of some rows, times `factor`, to the lanes of `out` [heads, Dk, width], zeros to the rest.

    `heads`: the first KV head, the number of them, and how many query heads each serves.
    """
    first, count, group = heads
    for h in range(count):
        for d in range(out.shape[1]):
            for lane in range(rows.shape[0] * group, out.shape[2]):
                out[h, d, lane] = np.float32(0.0)
        for r in range(rows.shape[0]):
            for g in range(group):
                for d in range(out.shape[1]):
                    out[h, d, r * group + g] = query[rows[r], (first + h) * group + g, d] * factor


@inner
def place_bounds(lows: I64, highs: I64, group: int, out: I32) -> tuple[int, int]:
    """Write what each lane sees to `out` [2, width]; lanes of no query see as much as the last one. Returns the highest
    low and the lowest high."""
    low, high = lows[0], highs[0]
    for lane in range(out.shape[1]):
        r = min(lane // group, lows.shape[0] - 1)
        out[0, lane], out[1, lane] = np.int32(lows[r]), np.int32(highs[r])
        low, high = max(low, lows[r]), min(high, highs[r])
    return low, high


@inner
def locate(pages: I64, layout: tuple[int, int, int], span: tuple[int, int], strides: tuple[int, int], out: I64) -> int:
    """Write where the keys and the values of the positions of a span begin to `out` [2, TILE]; the first one's again up
    to a multiple of TOKENS, which is returned. `layout`: the first page, its position, tokens per page."""
    first, base, page_tokens = layout
    lo, hi = span
    j = lo
    while j < hi:
        index = (j - base) // page_tokens
        end = min(hi, base + (index + 1) * page_tokens)
        slot = pages[first + index] * page_tokens + (j - base) - index * page_tokens
        for i in range(end - j):
            out[0, j - lo + i], out[1, j - lo + i] = (slot + i) * strides[0], (slot + i) * strides[1]
        j = end
    count = (hi - lo + TOKENS - 1) // TOKENS * TOKENS
    for j in range(hi - lo, count):
        out[0, j], out[1, j] = out[0, 0], out[1, 0]
    return count


@inner
def multiply(rows: tuple[F32, I64, int], queries: F32, scores: F32, count: int) -> None:
    """Write the products of `count` keys and the queries [Dk, width] to `scores` [TILE, width]."""
    keys, offsets, head = rows
    depth, width = queries.shape
    for lane in range(0, width, LANES * WIDTH):
        left = (width - lane) // WIDTH
        for j in range(0, count, TOKENS):
            if left >= 3:
                scores_3(keys, offsets, j, head, queries, lane, scores, j * width + lane, width, depth)
            elif left == 2:
                scores_2(keys, offsets, j, head, queries, lane, scores, j * width + lane, width, depth)
            else:
                scores_1(keys, offsets, j, head, queries, lane, scores, j * width + lane, width, depth)


@inner
def weigh(rows: tuple[F32, I64, int], scores: F32, counts: tuple[int, int], size: int, out: F32) -> None:
    """Add the values weighted by `scores` to `out` [queries, padded Dv]. `counts`: keys, queries. `size`: Dv."""
    values, offsets, head = rows
    count, num_queries = counts
    width, stride = scores.shape[1], out.shape[1]
    for n in range(0, stride, VECTORS * WIDTH):
        left = min(VECTORS, (stride - n) // WIDTH)
        last = size - n - (left - 1) * WIDTH
        for m in range(0, num_queries, ROWS):
            o = m * stride + n
            if left == 4:
                weigh_4(scores, m, width, values, offsets, head + n, count, out, o, stride, last)
            elif left == 3:
                weigh_3(scores, m, width, values, offsets, head + n, count, out, o, stride, last)
            elif left == 2:
                weigh_2(scores, m, width, values, offsets, head + n, count, out, o, stride, last)
            else:
                weigh_1(scores, m, width, values, offsets, head + n, count, out, o, stride, last)


@inner
def cap(scores: F32, count: int, limit: np.float32) -> None:
    """Bound logits in units of log2(e): x becomes limit * tanh(x / limit)."""
    for j in range(count):
        for lane in range(scores.shape[1]):
            scores[j, lane] = limit * np.tanh(scores[j, lane] / limit)


@inner
def shrink(out: F32, factors: F32) -> None:
    for m in range(out.shape[0]):
        if factors[m] != np.float32(1.0):
            for d in range(out.shape[1]):
                out[m, d] *= factors[m]


@inner
def attend_tile(
    caches: tuple[F32, F32, int, int],
    offsets: I64,
    block: tuple[F32, F32, F32, F32, I32],
    tile: tuple[int, int, int, bool],
    limit: np.float32,
) -> None:
    """Take the keys of one tile into a block's sums.

    `caches`: keys and values, where in a row the head's begin. `block`: queries [Dk, width], scores [TILE, width],
    state [3, width], sums [queries, padded Dv], bounds. `tile`: its first position, its keys, those with repetitions,
    whether some query does not see all of them.
    """
    keys, values, key_head, value_head = caches
    queries, scores, state, sums, bounds = block
    first, num_keys, count, is_edge = tile
    width = scores.shape[1]
    multiply((keys, offsets[0], key_head), queries, scores, count)
    if limit > 0:
        cap(scores, num_keys, limit)
    for lane in range(0, width, WIDTH):
        if is_edge:
            conceal(scores, lane, width, num_keys, bounds, lane, width, first)
        soften(scores, lane, width, num_keys, state, lane, width)
    shrink(sums, state[2])
    weigh((values, offsets[1], value_head), scores, (num_keys, sums.shape[0]), values.shape[2], sums)


@inner
def partials(a: I64, s: I64) -> tuple[F32, F32]:
    """The sums [N, H, Dv] of rows that are to be merged; their largest logits and sums of the softmax [2, N, H]."""
    sums = carray(f32_at(a[SPARE]), (s[NUM_SPARE], a[NUM_HEADS], a[VALUE_DIM]))
    state = carray(f32_at(a[SPARE] + 4 * sums.size), (2, s[NUM_SPARE], a[NUM_HEADS]))
    return sums, state


@inner
def with_sink(a: I64, h: int, top: np.float32, total: np.float32) -> Any:
    """Return by what the sum of head h is to be multiplied, with the head's sink logit in its softmax."""
    if a[SINKS] == 0:
        return np.float32(1.0) / total
    sink = carray(f32_at(a[SINKS]), a[NUM_HEADS])[h] * LOG2_E
    highest = max(top, sink)
    share = np.exp2(top - highest)
    return share / (total * share + np.exp2(sink - highest))


@inner
def finish_query(a: I64, s: I64, place: tuple[int, int, int], state: tuple[np.float32, np.float32], sums: int) -> None:
    """Write a query's result: to the output or, from a part on, to the partial results.

    `place`: its row, its head, the part (-1: none). `state`: its largest logit, its sum of the softmax. `sums`: where
    its sums of values are.
    """
    row, h, part = place
    size = a[VALUE_DIM]
    values = carray(f32_at(sums), size)
    if part >= 0:
        kept, kept_state = partials(a, s)
        kept_state[0, part, h], kept_state[1, part, h] = state
        for d in range(size):
            kept[part, h, d] = values[d]
        return
    out = carray(f32_at(a[OUT] + 4 * (row * a[OUT_WIDTH] + h * size)), size)
    share = with_sink(a, h, state[0], state[1])
    for d in range(size):
        out[d] = values[d] * share


@inner
def finish(a: I64, s: I64, rows: I64, place: tuple[int, int], block: tuple[F32, F32]) -> None:
    """Write a block's result for one KV head: to its rows of the output or, from a part on, to the partial results.

    `place`: the KV head, the part (-1: none).
    """
    head, part = place
    state, sums = block
    group = a[NUM_HEADS] // a[NUM_KV]
    for r in range(rows.shape[0]):
        for g in range(group):
            m = r * group + g
            to = (rows[r], head * group + g, part + r if part >= 0 else -1)
            finish_query(a, s, to, (state[0, m], state[1, m]), sums.ctypes.data + 4 * m * sums.shape[1])


@inner
def attend_many(address: int, a: I64, s: I64, unit: I64, entries: tuple[I64, I64, I64]) -> None:
    """Attend from the entries of one unit over its stretch of keys. `entries`: the rows, from where and to where they
    see."""
    rows, lows, highs = entries
    first, last, start, stop, head = unit[0], unit[1], unit[4], unit[5], unit[6]
    pages = carray(i64_at(s[PAGES]), s[NUM_PAGES])
    num_heads, group = unit[7] - head, a[NUM_HEADS] // a[NUM_KV]
    num_queries = (last - first) * group
    width = (num_queries + WIDTH - 1) // WIDTH * WIDTH
    size = (a[VALUE_DIM] + WIDTH - 1) // WIDTH * WIDTH
    queries = np.empty((num_heads, a[KEY_DIM], width), np.float32)
    query = carray(f32_at(a[QUERY]), (s[NUM_ROWS], a[NUM_HEADS], a[KEY_DIM]))
    place_queries(query, rows, (head, num_heads, group), number_at(address + 8 * SCALE) * LOG2_E, queries)
    bounds = np.empty((2, width), np.int32)
    highest_low, lowest_high = place_bounds(lows, highs, group, bounds)
    scores = np.zeros((TILE, width), np.float32)
    state = np.zeros((num_heads, 3, width), np.float32)
    state[:, 0, :] = LOWEST
    sums = np.zeros((num_heads, (num_queries + ROWS - 1) // ROWS * ROWS, size), np.float32)
    form, dims = a[FORMAT], (a[KEY_DIM], a[VALUE_DIM])
    keys = tile_source(form, a[KEYS], (a[NUM_SLOTS], a[NUM_KV], dims[0]), TILE)
    values = tile_source(form, a[VALUES], (a[NUM_SLOTS], a[NUM_KV], dims[1]), TILE)
    offsets, ahead, within = np.empty((2, TILE), np.int64), np.empty((2, TILE), np.int64), places_within(dims, TILE)
    item, sizes = item_bytes(form), (row_width(form, dims[0]), row_width(form, dims[1]))
    strides = (a[NUM_KV] * sizes[0], a[NUM_KV] * sizes[1])
    limit = number_at(address + 8 * SOFTCAP) * LOG2_E
    layout = (unit[2], unit[3], s[PAGE_TOKENS])
    count = locate(pages, layout, (start, min(start + TILE, stop)), strides, offsets)
    for lo in range(start, stop, TILE):
        hi = min(lo + TILE, stop)
        end = min(hi + TILE, stop)
        num_ahead = locate(pages, layout, (hi, end), strides, ahead)
        tile = (lo, hi - lo, count, lo < highest_low or hi > lowest_high)
        for h in range(num_heads):
            places = ((head + h) * sizes[0], (head + h) * sizes[1])
            fetch(a[KEYS], ahead[0], end - hi, places[0], sizes[0] * item, item)
            fetch(a[VALUES], ahead[1], end - hi, places[1], sizes[1] * item, item)
            block = (queries[h], scores, state[h], sums[h], bounds)
            if form == WHOLE:
                attend_tile((keys, values, places[0], places[1]), offsets, block, tile, limit)
            else:
                widen(form, a[KEYS], (offsets[0], places[0], count), keys)
                widen(form, a[VALUES], (offsets[1], places[1], hi - lo), values)
                attend_tile((keys, values, 0, 0), within, block, tile, limit)
        offsets, ahead = ahead, offsets
        count = num_ahead
    for h in range(num_heads):
        finish(a, s, rows, (head + h, unit[8]), (state[h], sums[h]))


def merge(address: int, chunk: int) -> None:
    """Merge the partial results of one row, in the order in which the plan has them."""
    a = carray(i64_at(address), NUM_LAYER)
    s = carray(i64_at(a[STEP]), NUM_STEP)
    size = a[VALUE_DIM]
    bounds = carray(i64_at(s[BOUNDS]), s[NUM_MERGED] + 1)
    places = carray(i64_at(s[PLACES]), s[NUM_PLACES])[bounds[chunk] : bounds[chunk + 1]]
    row = carray(f32_at(a[OUT]), (s[NUM_ROWS], a[OUT_WIDTH]))[carray(i64_at(s[MERGED]), s[NUM_MERGED])[chunk]]
    sums, state = partials(a, s)
    for h in range(a[NUM_HEADS]):
        top = state[0, places[0], h]
        for i in range(1, places.shape[0]):
            top = max(top, state[0, places[i], h])
        total = np.float32(0.0)
        out = row[h * size : (h + 1) * size]
        for d in range(size):
            out[d] = np.float32(0.0)
        for i in range(places.shape[0]):
            share = np.exp2(state[0, places[i], h] - top)
            total += share * state[1, places[i], h]
            for d in range(size):
                out[d] += share * sums[places[i], h, d]
        share = with_sink(a, h, top, total)
        for d in range(size):
            out[d] *= share


def store(address: int, chunk: int) -> None:
    """Write the keys and values of some new rows to their slots; and zeros as results, where some row sees nothing."""
    a = carray(i64_at(address), NUM_LAYER)
    s = carray(i64_at(a[STEP]), NUM_STEP)
    slots = carray(i64_at(s[SLOTS]), s[NUM_ROWS])
    key = carray(f32_at(a[KEY]), (s[NUM_ROWS], a[NUM_KV] * a[KEY_DIM]))
    value = carray(f32_at(a[VALUE]), (s[NUM_ROWS], a[NUM_KV] * a[VALUE_DIM]))
    for row in range(chunk * STORE_ROWS, min((chunk + 1) * STORE_ROWS, s[NUM_ROWS])):
        write_row(a[FORMAT], a[KEYS], slots[row], (key[row], a[KEY_DIM]))
        write_row(a[FORMAT], a[VALUES], slots[row], (value[row], a[VALUE_DIM]))
    if s[HAS_BLIND] != 0:
        blank(address, chunk)


@inner
def blank(address: int, chunk: int) -> None:
    a = carray(i64_at(address), NUM_LAYER)
    num_rows = carray(i64_at(a[STEP]), NUM_STEP)[NUM_ROWS]
    out = carray(f32_at(a[OUT]), (num_rows, a[OUT_WIDTH]))
    for row in range(chunk * STORE_ROWS, min((chunk + 1) * STORE_ROWS, num_rows)):
        for d in range(a[NUM_HEADS] * a[VALUE_DIM]):
            out[row, d] = np.float32(0.0)


def clear(address: int, chunk: int) -> None:
    """Write zeros as results of some rows, where some row sees nothing and keys and values are stored by others."""
    blank(address, chunk)


@inner
def store_head(address: int, head: tuple[int, bool], rows: tuple[int, int], new: tuple[int, int]) -> None:
    """Write a KV head's keys of some new rows to their slots, or its values.

    `address`: of the layer's arguments; `head`: its number, whether values; `rows`: the first one, how many; `new`:
    where the first one's are, bytes from one row to the next.
    """
    a = carray(i64_at(address), NUM_LAYER)
    s = carray(i64_at(a[STEP]), NUM_STEP)
    slots = carray(i64_at(s[SLOTS]), s[NUM_ROWS])
    (number, is_value), (row, num_rows), (source, stride) = head, rows, new
    cache, size = (a[VALUES], a[VALUE_DIM]) if is_value else (a[KEYS], a[KEY_DIM])
    for m in range(num_rows):
        write_head(a[FORMAT], cache, slots[row + m] * a[NUM_KV] + number, (source + m * stride, size))


STORE, CLEAR, MERGE = Kernel(store), Kernel(clear), Kernel(merge)

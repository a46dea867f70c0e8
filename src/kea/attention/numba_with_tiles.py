"""The kernel that attends, where the processor has tiles: units of many queries by them (`numba_many`).

Other units as elsewhere. Knows no plans.
"""

from __future__ import annotations

import numpy as np
from numba import carray
from numpy.typing import NDArray

from kea.attention.numba_cache import item_bytes, row_width
from kea.attention.numba_few import attend
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
    UNIT_FIELDS,
    UNITS,
    VALUE_DIM,
    VALUES,
    finish,
    place_bounds,
)
from kea.attention.numba_kernels import STEP as STEP_ARGUMENTS
from kea.attention.numba_many import TILE, address_of, aligned, attend_stretch, cut_queries, rows_of
from kea.kernels import tiles
from kea.kernels.cutting import LANES, STEP, STEP_BYTES
from kea.kernels.jit import inner
from kea.kernels.machine import f32_at, i64_at, number_at
from kea.kernels.program import Kernel
from kea.kernels.tile_blocks import BLOCK
from kea.kernels.vectors import LOWEST

I64 = NDArray[np.int64]

MIN_MANY = 24
"""Queries of one KV head from which on tiles are used: with fewer, keys and values are cut for too few."""

attend_otherwise = inner(attend)


@inner
def configure_tiles() -> None:
    """Configure the registers as eight tiles of 16 rows."""
    config = np.zeros(tiles.CONFIG_BYTES, np.uint8)
    config[0] = 1
    for tile in range(8):
        config[16 + 2 * tile], config[48 + tile] = 64, tiles.TILE_ROWS
    tiles.configure(address_of(config))


@inner
def attend_many(address: int, unit: I64) -> None:
    """Attend from the entries of one unit over its stretch of keys; the dimensions are multiples of 32."""
    a = carray(i64_at(address), NUM_LAYER)
    s = carray(i64_at(a[STEP_ARGUMENTS]), NUM_STEP)
    first, last, head, num_heads = unit[0], unit[1], unit[6], unit[7] - unit[6]
    rows = carray(i64_at(s[ROWS_SEEN]), s[NUM_ENTRIES])[first:last]
    lows = carray(i64_at(s[LOWS]), s[NUM_ENTRIES])[first:last]
    highs = carray(i64_at(s[HIGHS]), s[NUM_ENTRIES])[first:last]
    group, depth, size, form = a[NUM_HEADS] // a[NUM_KV], a[KEY_DIM], a[VALUE_DIM], a[FORMAT]
    width = ((last - first) * group + LANES - 1) // LANES * LANES
    num_blocks = (width + BLOCK - 1) // BLOCK
    bounds = np.empty((2, width), np.int32)
    highest_low, lowest_high = place_bounds(lows, highs, group, bounds)
    state, sums = (
        np.zeros((num_heads, 2, width), np.float32),
        np.zeros((num_heads, num_blocks, size, BLOCK), np.float32),
    )
    state[:, 0] = LOWEST
    key_bytes, value_bytes = depth // STEP * STEP_BYTES, TILE // STEP * STEP_BYTES
    query_bytes = num_blocks * key_bytes
    key_place = num_heads * query_bytes
    value_place = key_place + TILE // BLOCK * key_bytes
    power_place = value_place + size // BLOCK * value_bytes
    room, cut = aligned(power_place + 2 * value_bytes)
    query = carray(f32_at(a[QUERY]), (s[NUM_ROWS], a[NUM_HEADS], depth))
    factor = number_at(address + 8 * SCALE) * LOG2_E
    for h in range(num_heads):
        cut_queries(query, rows, ((head + h) * group, group), factor, cut + h * query_bytes)
    sizes = (row_width(form, depth) * item_bytes(form), row_width(form, size) * item_bytes(form))
    caches = (form, a[KEYS] + head * sizes[0], a[VALUES] + head * sizes[1], sizes)
    pages = carray(i64_at(s[PAGES]), s[NUM_PAGES])
    locating = (pages, (unit[2], unit[3], s[PAGE_TOKENS]), (a[NUM_KV] * sizes[0], a[NUM_KV] * sizes[1]))
    places = (cut, cut + key_place, cut + value_place, cut + power_place)
    limits = (highest_low, lowest_high, number_at(address + 8 * SOFTCAP) * LOG2_E)
    configure_tiles()
    attend_stretch((unit[4], unit[5], depth), locating, caches, places, (state, sums, bounds), limits)
    tiles.release()
    whole = np.empty((width, size), np.float32)
    for h in range(num_heads):
        rows_of(sums[h], whole)
        finish(a, s, rows, (head + h, unit[8]), (state[h], whole))
    room[0] = 0  # alive until here


def attend_with_tiles(address: int, chunk: int) -> None:
    """Attend from the entries of one unit over its stretch of keys."""
    a = carray(i64_at(address), NUM_LAYER)
    s = carray(i64_at(a[STEP_ARGUMENTS]), NUM_STEP)
    unit = carray(i64_at(s[UNITS]), (s[NUM_UNITS], UNIT_FIELDS))[chunk]
    num_queries = (unit[1] - unit[0]) * (a[NUM_HEADS] // a[NUM_KV])
    if num_queries >= MIN_MANY and a[KEY_DIM] % STEP == 0 and a[VALUE_DIM] % BLOCK == 0:
        attend_many(address, unit)
    else:
        attend_otherwise(address, chunk)


ATTEND_WITH_TILES = Kernel(attend_with_tiles)

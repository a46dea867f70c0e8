"""Products with weights in panels by Intel's tiles; rows of x come cut into three parts (`panels`). Knows no models."""

from __future__ import annotations

import numpy as np
from numba import carray, njit
from numpy.typing import NDArray

from kea.kernels import tiles
from kea.kernels.full_products import cut_full
from kea.kernels.machine import i64_at, prefetch_line
from kea.kernels.panels import (
    BIAS,
    BLOCK_ROWS,
    BLOCK_STEP_BYTES,
    CONFIG,
    DEPTH,
    LANES,
    NUM_ARGUMENTS,
    NUM_ROWS,
    OUT,
    OUT_STRIDE,
    PANEL_BYTES,
    SCALE,
    SPLITS,
    TAIL_CONFIG,
    UNIT_BYTES,
    W,
    X,
    cut_unit,
    direction,
    finish,
    part_of,
)
from kea.kernels.program import Kernel
from kea.kernels.tiles import TILE_BYTES, TILE_DEPTH, TILE_ROWS

CACHED_STEPS = 6
"""Steps of k for which a block of x, at 6 KiB a step, stays in a core's first cache while the panels pass by."""

CUT_STEPS = 3
"""Steps of k for which two panels of int8 become bfloat16 at a time: 6 KiB, beside the rows of x in the first cache."""


@njit(nogil=True)  # type: ignore[untyped-decorator]
def multiply_32(
    x: int, panels: tuple[int, int, int], steps: tuple[int, int], sums: tuple[int, int], adds: bool
) -> None:
    """Write the products of up to 32 rows of x with two panels; or add them to what is there.

    `panels`: where they begin, bytes from one to the next, and to those that are fetched meanwhile. `steps`: of k, and
    how many parts of x count.
    """
    (w, panel_bytes, ahead), (num_steps, num_parts), (out, stride) = panels, steps, sums
    if adds:
        tiles.load(0, out, stride)
        tiles.load(1, out + 64, stride)
        tiles.load(2, out + 16 * stride, stride)
        tiles.load(3, out + 16 * stride + 64, stride)
    else:
        tiles.zero(0)
        tiles.zero(1)
        tiles.zero(2)
        tiles.zero(3)
    for k in range(num_steps):
        tiles.load(4, w + k * TILE_BYTES, 64)
        tiles.load(5, w + panel_bytes + k * TILE_BYTES, 64)
        if not adds:  # the weights come from memory the first time only
            tiles.prefetch(w + ahead + k * TILE_BYTES)
            tiles.prefetch(w + ahead + panel_bytes + k * TILE_BYTES)
        at = x + k * BLOCK_STEP_BYTES
        for part in range(num_parts):
            tiles.load(6, at + part * 2 * TILE_BYTES, 64)
            tiles.dot(0, 6, 4)
            tiles.dot(1, 6, 5)
            tiles.load(7, at + (part * 2 + 1) * TILE_BYTES, 64)
            tiles.dot(2, 7, 4)
            tiles.dot(3, 7, 5)
    tiles.store(0, out, stride)
    tiles.store(1, out + 64, stride)
    tiles.store(2, out + 16 * stride, stride)
    tiles.store(3, out + 16 * stride + 64, stride)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def multiply_16(
    x: int, panels: tuple[int, int, int], steps: tuple[int, int], sums: tuple[int, int], adds: bool
) -> None:
    """The same for up to 16 rows."""
    (w, panel_bytes, ahead), (num_steps, num_parts), (out, stride) = panels, steps, sums
    if adds:
        tiles.load(0, out, stride)
        tiles.load(1, out + 64, stride)
    else:
        tiles.zero(0)
        tiles.zero(1)
    for k in range(num_steps):
        tiles.load(4, w + k * TILE_BYTES, 64)
        tiles.load(5, w + panel_bytes + k * TILE_BYTES, 64)
        if not adds:
            tiles.prefetch(w + ahead + k * TILE_BYTES)
            tiles.prefetch(w + ahead + panel_bytes + k * TILE_BYTES)
        at = x + k * BLOCK_STEP_BYTES
        tiles.load(2, at, 64)
        tiles.dot(0, 2, 4)
        tiles.dot(1, 2, 5)
        if num_parts > 1:
            tiles.load(3, at + 2 * TILE_BYTES, 64)
            tiles.dot(0, 3, 4)
            tiles.dot(1, 3, 5)
        if num_parts > 2:
            tiles.load(6, at + 4 * TILE_BYTES, 64)
            tiles.dot(0, 6, 4)
            tiles.dot(1, 6, 5)
    tiles.store(0, out, stride)
    tiles.store(1, out + 64, stride)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def tiles_chunk(a: NDArray[np.int64], chunk: int, parts: tuple[int, int, int, int]) -> None:
    """One chunk of a product in tiles. `parts`: where the bfloat16 panels of the first part of the weights begin, bytes
    from one panel to the next, from one part to the next, and the number of parts, whose sum the weights are.
    """
    w, panel_bytes, part_bytes, num_parts = parts
    row, panel, num_rows, last = part_of(a, chunk)
    steps, stride = a[DEPTH] // TILE_DEPTH, a[OUT_STRIDE]
    x, way = a[X] + row // BLOCK_ROWS * steps * BLOCK_STEP_BYTES, direction(chunk)
    for block in range((num_rows + BLOCK_ROWS - 1) // BLOCK_ROWS):
        count = num_rows - block * BLOCK_ROWS
        tiles.configure(a[CONFIG] if count >= BLOCK_ROWS else a[TAIL_CONFIG])
        some = steps if num_rows <= BLOCK_ROWS else CACHED_STEPS
        for k in range(0, steps, some):
            rows = x + (block * steps + k) * BLOCK_STEP_BYTES
            for i in range(0, last - panel, 2):
                p = panel + i if way > 0 else last - 2 - i
                out = (a[OUT] + (row + block * BLOCK_ROWS) * stride + p * UNIT_BYTES, stride)
                for part in range(num_parts):
                    first = w + part * part_bytes + (p - panel) * panel_bytes + k * TILE_BYTES
                    at = (first, panel_bytes, 2 * way * panel_bytes)
                    size = (min(some, steps - k), SPLITS - part)
                    if count > TILE_ROWS:
                        multiply_32(rows, at, size, out, k + part > 0)
                    else:
                        multiply_16(rows, at, size, out, k + part > 0)
    tiles.release()
    sums = (a[OUT] + row * stride + panel * UNIT_BYTES, stride)
    finish(sums, num_rows, (panel * LANES, (last - panel) * LANES), a[SCALE], a[BIAS])


@njit(nogil=True)  # type: ignore[untyped-decorator]
def cut_chunk(a: NDArray[np.int64], chunk: int) -> None:
    """One chunk of a product with int8 weights, which become bfloat16 in this core's second cache."""
    _, panel, _, last = part_of(a, chunk)
    panel_bytes = a[DEPTH] * 2 * LANES
    part_bytes = (last - panel) * panel_bytes
    room = np.empty(part_bytes + UNIT_BYTES, np.uint8)
    start = (room.ctypes.data + UNIT_BYTES - 1) // UNIT_BYTES * UNIT_BYTES
    ahead = 2 * a[PANEL_BYTES]
    for p in range(panel, last):
        source, target = a[W] + p * a[PANEL_BYTES], start + (p - panel) * panel_bytes
        for u in range(a[PANEL_BYTES] // UNIT_BYTES):
            prefetch_line(source + ahead + u * UNIT_BYTES)
            cut_unit(source + u * UNIT_BYTES, target + 2 * u * UNIT_BYTES)
    tiles_chunk(a, chunk, (start, panel_bytes, part_bytes, 1))
    room[0] = 0  # alive until here


@njit(nogil=True)  # type: ignore[untyped-decorator]
def cut_few(a: NDArray[np.int64], chunk: int) -> None:
    """One chunk of a product of one block of rows with int8 weights, which become bfloat16 in this core's first cache,
    a few steps of k at a time.
    """
    _, panel, num_rows, last = part_of(a, chunk)
    steps, stride = a[DEPTH] // TILE_DEPTH, a[OUT_STRIDE]
    room = np.empty(2 * CUT_STEPS * TILE_BYTES + UNIT_BYTES, np.uint8)
    start = (room.ctypes.data + UNIT_BYTES - 1) // UNIT_BYTES * UNIT_BYTES
    step_bytes, ahead = TILE_DEPTH * LANES, 2 * a[PANEL_BYTES]
    tiles.configure(a[CONFIG] if num_rows == BLOCK_ROWS else a[TAIL_CONFIG])
    for p in range(panel, last, 2):
        out = (a[OUT] + p * UNIT_BYTES, stride)
        for k in range(0, steps, CUT_STEPS):
            count = min(CUT_STEPS, steps - k)
            for half in range(2):
                source = a[W] + (p + half) * a[PANEL_BYTES] + k * step_bytes
                target = start + half * CUT_STEPS * TILE_BYTES
                for u in range(count * step_bytes // UNIT_BYTES):
                    prefetch_line(source + ahead + u * UNIT_BYTES)
                    cut_unit(source + u * UNIT_BYTES, target + 2 * u * UNIT_BYTES)
            rows, weights = a[X] + k * BLOCK_STEP_BYTES, (start, CUT_STEPS * TILE_BYTES, 0)
            if num_rows > TILE_ROWS:
                multiply_32(rows, weights, (count, SPLITS), out, k > 0)
            else:
                multiply_16(rows, weights, (count, SPLITS), out, k > 0)
    tiles.release()
    sums = (a[OUT] + panel * UNIT_BYTES, stride)
    finish(sums, num_rows, (panel * LANES, (last - panel) * LANES), a[SCALE], a[BIAS])
    room[0] = 0  # alive until here


def multiply_tiles_full(address: int, chunk: int) -> None:
    cut_full(carray(i64_at(address), NUM_ARGUMENTS), chunk)


def multiply_tiles_half(address: int, chunk: int) -> None:
    a = carray(i64_at(address), NUM_ARGUMENTS)
    _, panel, _, _ = part_of(a, chunk)
    tiles_chunk(a, chunk, (a[W] + panel * a[PANEL_BYTES], a[PANEL_BYTES], 0, 1))


def multiply_tiles_byte(address: int, chunk: int) -> None:
    a = carray(i64_at(address), NUM_ARGUMENTS)
    if a[NUM_ROWS] <= BLOCK_ROWS:
        cut_few(a, chunk)
    else:
        cut_chunk(a, chunk)


TILES_PRODUCTS = (Kernel(multiply_tiles_full), Kernel(multiply_tiles_half), Kernel(multiply_tiles_byte))
"""By the kind of the weights: x as tiles [M / 32, DEPTH / 32, 3, 2, 16, 32] bfloat16."""

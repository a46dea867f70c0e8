"""Products with weights in panels by Intel's tiles; rows of x come cut into three parts (`panels`). Knows no models."""

from __future__ import annotations

from numba import carray, njit

from kea.kernels import tiles
from kea.kernels.byte_products import BYTES_PRODUCT
from kea.kernels.full_products import cut_chunk
from kea.kernels.machine import i64_at
from kea.kernels.panels import (
    CONFIG,
    DEPTH,
    FP16,
    FULL,
    NUM_ARGUMENTS,
    OUT,
    OUT_STRIDE,
    PANEL_BYTES,
    SCALE,
    TAIL_CONFIG,
    W,
    X,
    direction,
    finish,
    part_of,
)
from kea.kernels.parts import BLOCK_ROWS, BLOCK_STEP_BYTES, SPLITS, UNIT_BYTES
from kea.kernels.program import Kernel
from kea.kernels.tiles import TILE_BYTES, TILE_DEPTH, TILE_ROWS

PART_LINES, LINE_BYTES = 6, 64
"""Lines of a panel that are asked for beside the products of a part of x: all 16 at once keep loads waiting."""

CACHED_STEPS = 6
"""Steps of k for which a block of x, at 6 KiB a step, stays in a core's first cache while the panels pass by."""


@njit(nogil=True)  # type: ignore[untyped-decorator]
def multiply_32(x: int, panels: tuple[int, int, int], num_steps: int, sums: tuple[int, int], adds: bool) -> None:
    """Write the products of up to 32 rows of x with two panels; or add them to what is there.

    `panels`: where they begin, bytes from one to the next, and to those that are fetched meanwhile.
    """
    (w, panel_bytes, ahead), (out, stride) = panels, sums
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
        fetched = w + ahead + k * TILE_BYTES
        at = x + k * BLOCK_STEP_BYTES
        for part in range(SPLITS):
            tiles.load(6, at + part * 2 * TILE_BYTES, 64)
            tiles.dot(0, 6, 4)
            if not adds:  # the weights come from memory the first time only
                tiles.prefetch_lines(fetched + part * PART_LINES * LINE_BYTES, 3)
            tiles.dot(1, 6, 5)
            if not adds:
                tiles.prefetch_lines(fetched + (part * PART_LINES + 3) * LINE_BYTES, 3)
            tiles.load(7, at + (part * 2 + 1) * TILE_BYTES, 64)
            tiles.dot(2, 7, 4)
            if not adds:
                tiles.prefetch_lines(fetched + panel_bytes + part * PART_LINES * LINE_BYTES, 3)
            tiles.dot(3, 7, 5)
            if not adds:
                tiles.prefetch_lines(fetched + panel_bytes + (part * PART_LINES + 3) * LINE_BYTES, 3)
    tiles.store(0, out, stride)
    tiles.store(1, out + 64, stride)
    tiles.store(2, out + 16 * stride, stride)
    tiles.store(3, out + 16 * stride + 64, stride)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def multiply_16(x: int, panels: tuple[int, int, int], num_steps: int, sums: tuple[int, int], adds: bool) -> None:
    """The same for up to 16 rows."""
    (w, panel_bytes, ahead), (out, stride) = panels, sums
    if adds:
        tiles.load(0, out, stride)
        tiles.load(1, out + 64, stride)
    else:
        tiles.zero(0)
        tiles.zero(1)
    for k in range(num_steps):
        tiles.load(4, w + k * TILE_BYTES, 64)
        tiles.load(5, w + panel_bytes + k * TILE_BYTES, 64)
        fetched = w + ahead + k * TILE_BYTES
        at = x + k * BLOCK_STEP_BYTES
        tiles.load(2, at, 64)
        tiles.dot(0, 2, 4)
        if not adds:
            tiles.prefetch_lines(fetched, PART_LINES)
        tiles.dot(1, 2, 5)
        if not adds:
            tiles.prefetch_lines(fetched + panel_bytes, PART_LINES)
        tiles.load(3, at + 2 * TILE_BYTES, 64)
        tiles.dot(0, 3, 4)
        if not adds:
            tiles.prefetch_lines(fetched + PART_LINES * LINE_BYTES, PART_LINES)
        tiles.dot(1, 3, 5)
        if not adds:
            tiles.prefetch_lines(fetched + panel_bytes + PART_LINES * LINE_BYTES, PART_LINES)
        tiles.load(6, at + 4 * TILE_BYTES, 64)
        tiles.dot(0, 6, 4)
        if not adds:
            tiles.prefetch_lines(fetched + 2 * PART_LINES * LINE_BYTES, PART_LINES)
        tiles.dot(1, 6, 5)
        if not adds:
            tiles.prefetch_lines(fetched + panel_bytes + 2 * PART_LINES * LINE_BYTES, PART_LINES)
    tiles.store(0, out, stride)
    tiles.store(1, out + 64, stride)


def multiply_tiles_full(address: int, chunk: int) -> None:
    cut_chunk(FULL, carray(i64_at(address), NUM_ARGUMENTS), chunk)


def multiply_tiles_fp16(address: int, chunk: int) -> None:
    cut_chunk(FP16, carray(i64_at(address), NUM_ARGUMENTS), chunk)


def multiply_tiles_half(address: int, chunk: int) -> None:
    a = carray(i64_at(address), NUM_ARGUMENTS)
    row, panel, num_rows, last = part_of(a, chunk)
    steps, stride, panel_bytes = a[DEPTH] // TILE_DEPTH, a[OUT_STRIDE], a[PANEL_BYTES]
    x, way = a[X] + row // BLOCK_ROWS * steps * BLOCK_STEP_BYTES, direction(chunk)
    for block in range((num_rows + BLOCK_ROWS - 1) // BLOCK_ROWS):
        count = num_rows - block * BLOCK_ROWS
        tiles.configure(a[CONFIG] if count >= BLOCK_ROWS else a[TAIL_CONFIG])
        some = steps if num_rows <= BLOCK_ROWS else CACHED_STEPS
        for k in range(0, steps, some):
            rows, size = x + (block * steps + k) * BLOCK_STEP_BYTES, min(some, steps - k)
            for i in range(0, last - panel, 2):
                p = panel + i if way > 0 else last - 2 - i
                out = (a[OUT] + (row + block * BLOCK_ROWS) * stride + p * UNIT_BYTES, stride)
                weights = (a[W] + p * panel_bytes + k * TILE_BYTES, panel_bytes, 2 * way * panel_bytes)
                if count > TILE_ROWS:
                    multiply_32(rows, weights, size, out, k > 0)
                else:
                    multiply_16(rows, weights, size, out, k > 0)
    tiles.release()
    finish(a, (row, num_rows), (panel, last), a[SCALE])


TILES_PRODUCTS = (
    Kernel(multiply_tiles_full),
    Kernel(multiply_tiles_half),
    BYTES_PRODUCT,
    Kernel(multiply_tiles_fp16),
)
"""By the kind of the weights: x as tiles [M / 32, DEPTH / 32, 3, 2, 16, 32] bfloat16, or as digits for int8."""

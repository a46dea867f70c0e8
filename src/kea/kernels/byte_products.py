"""Products of int8 weights in panels with the digits of x, in integers, by Intel's tiles. Knows no models.

Two panels at a time meet eight rows of x: two tiles of digits, four of sums, which stay in registers over all of k or,
for many rows, over as much of it as leaves the panels in the first cache. To store four tiles takes a quarter of the
time of the products of 576 values of k; so the sums of a group of rows leave the registers one by one within the next
group's first step, and become fp32 within its other steps, a row in each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from kea.kernels import tiles
from kea.kernels.digits import DIGIT_DEPTH, DIGITS, GROUP_ROWS, GROUP_STEP_BYTES, TILE_GROUP
from kea.kernels.machine import CACHE_LINE_BYTES, i64_at, pointer
from kea.kernels.panels import (
    CONFIG,
    DEPTH,
    NUM_ARGUMENTS,
    OUT,
    OUT_STRIDE,
    PANEL_BYTES,
    SCALE,
    W,
    X,
    direction,
    finish,
    part_of,
)
from kea.kernels.parts import LANES, UNIT_BYTES
from kea.kernels.program import Kernel
from kea.kernels.tiles import TILE_BYTES, TILE_ROWS, tile_config
from kea.kernels.vectors import INTEGERS, VECTOR, WIDTH, Emitter

CACHED_STEPS = 12
"""Steps of 64 values of k for which two panels, at 2 KiB a step, stay in the first cache as groups of rows pass by."""

VECTOR_BYTES = 4 * WIDTH
SUMS_STRIDE = 2 * UNIT_BYTES
ROW_SUMS_BYTES = DIGITS * SUMS_STRIDE
TILE_SUMS_BYTES = TILE_GROUP * ROW_SUMS_BYTES
SUMS_BYTES = GROUP_ROWS * ROW_SUMS_BYTES
"""Sums of a group as they leave the registers: [8 rows, 4 digits, 2 panels x 16] int32."""


class Pending(NamedTuple):
    """Sums of a group that are in the registers, and what they become.

    Addresses of their place, of the rows' and the two panels' scales, and of the first row to be written, whose next
    one lies `stride` bytes behind. `adds`: to what is there.
    """

    num_rows: int
    sums: int
    scale: int
    scales: int
    out: int
    stride: int
    adds: bool


def byte_config(num_rows: int) -> NDArray[np.uint8]:
    """Return the registers' rows for so many rows of x: sums in 0 to 3, weights in 4 and 5, x in 6 and 7."""
    upper = min(TILE_ROWS, DIGITS * num_rows)
    lower = upper if num_rows <= TILE_GROUP else min(TILE_ROWS, DIGITS * (num_rows - TILE_GROUP))
    return tile_config((upper, upper, lower, lower, TILE_ROWS, TILE_ROWS, upper, lower))


@intrinsic  # type: ignore[untyped-decorator]
def join(_typing: Any, sums: Any, scales: Any, out: Any, adds: Any) -> Any:
    """Write a row of two panels from the sums of its digits; or add it to what is there.

    Addresses, `scales`: of the row's and of the columns'.
    """

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        e = Emitter(context, builder)
        sums, both, out, adds = values
        scale, scales = (builder.extract_value(both, i) for i in range(2))

        def at(address: Any, offset: int) -> Any:  # not an offset from a pointer: LLVM may form that one from null
            return pointer(builder, builder.add(address, e.number(offset)))

        factor = e.spread(e.scalar(at(scale, 0)))
        places = range(0, SUMS_STRIDE, VECTOR_BYTES)
        totals = []
        for place in places:
            total = e.constant(0.0)
            for digit in reversed(range(DIGITS)):
                found = builder.sitofp(e.vector(at(sums, digit * SUMS_STRIDE + place), INTEGERS), VECTOR)
                total = e.fma(total, e.constant(2.0**-8), found)
            totals.append(builder.fmul(total, builder.fmul(factor, e.vector(at(scales, place)))))
        with builder.if_else(adds) as (more, first):
            with more:
                for total, place in zip(totals, places, strict=True):
                    e.put(builder.fadd(total, e.vector(at(out, place))), at(out, place))
            with first:
                for total, place in zip(totals, places, strict=True):
                    e.put(total, at(out, place))
        return context.get_dummy_value()

    return types.void(types.int64, types.UniTuple(types.int64, 2), types.int64, types.boolean), generate


@njit(nogil=True)  # type: ignore[untyped-decorator]
def join_row(pending: Pending, m: int) -> None:
    sums, out = pending.sums + m * ROW_SUMS_BYTES, pending.out + m * pending.stride
    join(sums, (pending.scale + 4 * m, pending.scales), out, pending.adds)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def multiply_group(x: int, panels: tuple[int, int, int], num_steps: int, both: bool, pending: Pending) -> None:
    """Leave the products of up to eight rows of x and two panels in registers; finish what was there.

    `panels`: where they begin, bytes from one to the next, what to fetch meanwhile (0: nothing). `both`: more than four
    rows, in two tiles.
    """
    w, panel_bytes, ahead = panels
    tiles.load(4, w, UNIT_BYTES)
    tiles.load(6, x, UNIT_BYTES)
    tiles.store(0, pending.sums, SUMS_STRIDE)
    tiles.zero(0)
    tiles.dot_bytes(0, 6, 4)
    tiles.load(5, w + panel_bytes, UNIT_BYTES)
    tiles.store(1, pending.sums + UNIT_BYTES, SUMS_STRIDE)
    tiles.zero(1)
    tiles.dot_bytes(1, 6, 5)
    tiles.store(2, pending.sums + TILE_SUMS_BYTES, SUMS_STRIDE)
    tiles.store(3, pending.sums + TILE_SUMS_BYTES + UNIT_BYTES, SUMS_STRIDE)
    if both:
        tiles.load(7, x + TILE_BYTES, UNIT_BYTES)
        tiles.zero(2)
        tiles.dot_bytes(2, 7, 4)
        tiles.zero(3)
        tiles.dot_bytes(3, 7, 5)
    if ahead != 0:
        tiles.prefetch(ahead)
        tiles.prefetch(ahead + panel_bytes)
    for k in range(1, num_steps):
        at = k * TILE_BYTES
        tiles.load(4, w + at, UNIT_BYTES)
        tiles.load(5, w + panel_bytes + at, UNIT_BYTES)
        tiles.load(6, x + 2 * at, UNIT_BYTES)
        tiles.dot_bytes(0, 6, 4)
        tiles.dot_bytes(1, 6, 5)
        if both:
            tiles.load(7, x + 2 * at + TILE_BYTES, UNIT_BYTES)
            tiles.dot_bytes(2, 7, 4)
            tiles.dot_bytes(3, 7, 5)
        if ahead != 0:
            tiles.prefetch(ahead + at)
            tiles.prefetch(ahead + panel_bytes + at)
        if k <= pending.num_rows:
            join_row(pending, k - 1)
    for m in range(num_steps - 1, pending.num_rows):
        join_row(pending, m)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def finish_group(pending: Pending) -> None:
    tiles.store(0, pending.sums, SUMS_STRIDE)
    tiles.store(1, pending.sums + UNIT_BYTES, SUMS_STRIDE)
    tiles.store(2, pending.sums + TILE_SUMS_BYTES, SUMS_STRIDE)
    tiles.store(3, pending.sums + TILE_SUMS_BYTES + UNIT_BYTES, SUMS_STRIDE)
    for m in range(pending.num_rows):
        join_row(pending, m)


def multiply_tiles_byte(address: int, chunk: int) -> None:
    a = carray(i64_at(address), NUM_ARGUMENTS)
    row, panel, num_rows, last = part_of(a, chunk)
    steps, stride, panel_bytes = a[DEPTH] // DIGIT_DEPTH, a[OUT_STRIDE], a[PANEL_BYTES]
    group_bytes = steps * GROUP_STEP_BYTES + CACHE_LINE_BYTES
    x, way = a[X] + row // GROUP_ROWS * group_bytes, direction(chunk)
    room = np.empty(2 * SUMS_BYTES + UNIT_BYTES, np.uint8)
    sums = (room.ctypes.data + UNIT_BYTES - 1) // UNIT_BYTES * UNIT_BYTES
    other = sums + SUMS_BYTES
    pending = Pending(0, other, x, x, x, stride, False)
    blocks = 1 if num_rows <= GROUP_ROWS else (steps + CACHED_STEPS - 1) // CACHED_STEPS
    some = (steps + blocks - 1) // blocks
    tiles.configure(a[CONFIG])
    for k in range(0, steps, some):
        size = min(some, steps - k)
        for i in range(0, last - panel, 2):
            p = panel + i if way > 0 else last - 2 - i
            w = a[W] + p * panel_bytes + k * TILE_BYTES
            for m in range(0, num_rows, GROUP_ROWS):
                group = x + m // GROUP_ROWS * group_bytes
                count = min(GROUP_ROWS, num_rows - m)
                pair = (w, panel_bytes, w + 2 * way * panel_bytes if m == 0 else 0)
                multiply_group(group + k * GROUP_STEP_BYTES, pair, size, count > TILE_GROUP, pending)
                out = a[OUT] + (row + m) * stride + p * UNIT_BYTES
                scales = (group + steps * GROUP_STEP_BYTES, a[SCALE] + 4 * p * LANES)
                pending = Pending(count, sums, scales[0], scales[1], out, stride, k > 0)
                sums, other = other, sums
    finish_group(pending)
    tiles.release()
    finish(a, (row, num_rows), (panel, last), 0)
    room[0] = 0  # alive until here


BYTES_PRODUCT = Kernel(multiply_tiles_byte)

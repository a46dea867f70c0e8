"""Products of more than a few rows with weights in panels, in vector registers (`panels`). Knows no models.

A block of k of two panels comes to the first cache once and meets all rows of x there; meanwhile the block behind it is
fetched. Sums of a block are formed by themselves and then added, so they err less than those of one long row.
"""

from __future__ import annotations

from typing import Any

from numba import carray, literally, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from kea.kernels.machine import F32, I64, emit_prefetch, i64_at, pointer
from kea.kernels.panels import (
    BYTE,
    DEPTH,
    FP16,
    FULL,
    HALF,
    HAS_WIDE,
    NUM_ARGUMENTS,
    OUT,
    OUT_STRIDE,
    PANEL_BLOCK,
    PANEL_BYTES,
    SCALE,
    VALUES,
    WEIGHT_BYTES,
    X_STRIDE,
    W,
    X,
    direction,
    emit_fma,
    emit_splat,
    emit_widened,
    emit_zeros,
    finish,
    part_of,
)
from kea.kernels.parts import UNIT_BYTES, VECTOR
from kea.kernels.program import Kernel

MOST, MORE, SOME = (12, 8, 4) if HAS_WIDE else (6, 4, 3)
"""Rows of x whose sums are in registers at a time, of the 32 with AVX-512, 16 without; fewer, where fewer are left."""

BLOCK_UNITS = 64
"""Units of a panel that make a block: two panels take 8 KiB of the first cache."""

NUM_PLACES = 9


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def multiply_block(_typing: Any, kind: Any, rows: Any, places: Any, adds: Any) -> Any:
    """Write the products of `rows` rows of x and some panels over a block of k, or add them to what is there.

    `places`: address and row stride of x; address of the block, from one panel to the next, and from a panel to what is
    fetched of it meanwhile, for two panels; address and row stride of the sums; units.
    """
    if not all(isinstance(number, types.IntegerLiteral) for number in (kind, rows)):
        return None
    num_rows, values = rows.literal_value, VALUES[kind.literal_value]

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        x, x_stride, w, panel_bytes, near, far, out, out_stride, units = cgutils.unpack_tuple(builder, args[2])
        sums = [emit_zeros(builder, PANEL_BLOCK) for _ in range(num_rows)]
        with cgutils.for_range(builder, units, intp=I64) as loop:
            first = builder.add(x, builder.mul(loop.index, I64(4 * values)))
            widened = []
            for p, ahead in zip(range(PANEL_BLOCK), (near, far), strict=False):
                unit = builder.add(builder.mul(loop.index, I64(UNIT_BYTES)), builder.mul(I64(p), panel_bytes))
                place = builder.add(w, unit)
                emit_prefetch(builder, builder.add(place, ahead))
                widened.append(emit_widened(builder, kind.literal_value, place))
            for j in range(values):
                for m in range(num_rows):
                    at = builder.add(builder.add(first, I64(4 * j)), builder.mul(I64(m), x_stride))
                    value = emit_splat(builder, builder.load(pointer(builder, at), typ=F32, align=4))
                    for p in range(PANEL_BLOCK):
                        total = builder.load(sums[m][p], typ=VECTOR)
                        builder.store(emit_fma(builder, value, widened[p][j], total), sums[m][p])
        for m in range(num_rows):
            for p in range(PANEL_BLOCK):
                at = builder.add(builder.add(out, builder.mul(I64(m), out_stride)), I64(UNIT_BYTES * p))
                _put(builder, builder.load(sums[m][p], typ=VECTOR), pointer(builder, at), args[3])
        return context.get_dummy_value()

    return types.void(kind, rows, types.UniTuple(types.int64, NUM_PLACES), types.boolean), emit


def _put(builder: Any, value: Any, at: Any, adds: Any) -> None:
    with builder.if_else(adds) as (then, otherwise):
        with then:
            builder.store(builder.fadd(builder.load(at, typ=VECTOR, align=4), value), at, align=4)
        with otherwise:
            builder.store(value, at, align=4)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def multiply_rows(kind: int, num_rows: int, places: tuple[int, int, int, int, int, int, int, int], adds: bool) -> None:
    """The same for any number of rows: `places` with one distance for both panels, which are fetched in turn where the
    rows take more than one turn.
    """
    literally(kind)
    x, x_stride, w, panel_bytes, ahead, out, out_stride, units = places
    m = 0
    while m < num_rows:
        left = num_rows - m
        near = ahead if m == 0 else 0
        far = ahead if m <= MOST and (m == 0) == (num_rows <= MOST) else 0
        at = (x + m * x_stride, x_stride, w, panel_bytes, near, far, out + m * out_stride, out_stride, units)
        if left >= MOST:
            multiply_block(kind, MOST, at, adds)
            m += MOST
        elif left >= MORE:
            multiply_block(kind, MORE, at, adds)
            m += MORE
        elif left >= SOME:
            multiply_block(kind, SOME, at, adds)
            m += SOME
        elif left >= 2:
            multiply_block(kind, 2, at, adds)
            m += 2
        else:
            multiply_block(kind, 1, at, adds)
            m += 1


@njit(nogil=True)  # type: ignore[untyped-decorator]
def blocks_chunk(kind: int, address: int, chunk: int) -> None:
    """One chunk of a product in vector registers: some rows of x with some panels."""
    literally(kind)
    a = carray(i64_at(address), NUM_ARGUMENTS)
    row, panel, num_rows, last = part_of(a, chunk)
    x, x_stride, out_stride, panel_bytes = a[X] + row * a[X_STRIDE], a[X_STRIDE], a[OUT_STRIDE], a[PANEL_BYTES]
    units, unit_bytes = a[DEPTH] * WEIGHT_BYTES[kind] // 4, 16 // WEIGHT_BYTES[kind]
    way = direction(chunk) * PANEL_BLOCK
    for p in range(panel, last, PANEL_BLOCK) if way > 0 else range(last - PANEL_BLOCK, panel - 1, -PANEL_BLOCK):
        w, out = a[W] + p * panel_bytes, a[OUT] + row * out_stride + p * UNIT_BYTES
        for k in range(0, units, BLOCK_UNITS):
            ahead = BLOCK_UNITS * UNIT_BYTES
            if k + BLOCK_UNITS >= units:
                ahead = way * panel_bytes - k * UNIT_BYTES
            size = min(BLOCK_UNITS, units - k)
            block = (x + k * unit_bytes, x_stride, w + k * UNIT_BYTES, panel_bytes, ahead, out, out_stride, size)
            multiply_rows(kind, num_rows, block, k > 0)
    finish(a, (row, num_rows), (panel, last), a[SCALE])


def multiply_blocks_full(address: int, chunk: int) -> None:
    blocks_chunk(FULL, address, chunk)


def multiply_blocks_half(address: int, chunk: int) -> None:
    blocks_chunk(HALF, address, chunk)


def multiply_blocks_byte(address: int, chunk: int) -> None:
    blocks_chunk(BYTE, address, chunk)


def multiply_blocks_fp16(address: int, chunk: int) -> None:
    blocks_chunk(FP16, address, chunk)


BLOCKS_PRODUCTS = tuple(
    map(Kernel, (multiply_blocks_full, multiply_blocks_half, multiply_blocks_byte, multiply_blocks_fp16))
)
"""By the kind of the weights: x as fp32 rows [M, DEPTH]."""

"""Rows of x in fixed point, as four digits of eight bits, for products with int8 in integers. Knows no models.

A row is scaled by the power of two that brings its largest magnitude below 2**30, and rounded to whole numbers: nothing
is lost of what is not smaller than a 64th of the largest, 2**-30 of the largest of the rest. Such a number has four
signed digits; each meets the int8 weights by itself, sums of products are exact in int32 up to 2**17 values of k, and
the four sums become one fp32 at the end. So a product's error is the rounding of x and that of the result. Beside a
value of 1e5 the others of a row, of about 1, keep steps of 1e-4: a column whose weight for it is 0 errs by some 3e-5 of
its own result, where fp32 would by 1e-7. But that weight is only known to be less than half a step of int8, a 254th of
its column's largest, and so that result to a few hundred: it is not what is lost. A row that is not finite has nan for
its scale.

Layout: groups of eight rows, each [padded K / 64, 2 tiles, 4 rows, 4 digits from the highest, 64] int8, and behind them
the scales of the rows, fp32, in a line of 64 bytes. What is behind K in a row may be anything: its weights are zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from kea.kernels.machine import CACHE_LINE_BYTES, f32_at, float_of_bits
from kea.kernels.narrow import place
from kea.kernels.tiles import TILE_BYTES
from kea.kernels.vectors import I32, INTEGERS, VECTOR, WIDTH, Emitter

DIGITS = 4
DIGIT_DEPTH = 64
"""Values of k in a row of a tile."""

TILE_GROUP = 4
GROUP_ROWS = 8
GROUP_STEP_BYTES = 2 * TILE_BYTES
"""Rows of x in a tile and in a group; bytes of a group for 64 values of k."""

SMALLEST_EXPONENT = 30
"""Biased; rows below 2**-97 are scaled as if they reached it, so that scales are normal numbers."""

_BORROWS = 0x00808080
"""Added, then taken off bit by bit: each digit but the highest turns from 0 to 255 into -128 to 127."""

_I8 = ir.VectorType(ir.IntType(8), WIDTH)


def group_bytes(depth: int) -> int:
    """Return the bytes of a group of rows of `depth` values."""
    return -(-depth // DIGIT_DEPTH) * GROUP_STEP_BYTES + CACHE_LINE_BYTES


@intrinsic  # type: ignore[untyped-decorator]
def largest_bits(_typing: Any, row: Any, size: Any) -> Any:
    """Return the largest of the magnitudes of `size` fp32 at an address, as bits; infinity's or more if not finite.

    `size` is a multiple of a vector's width.
    """

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        e = Emitter(context, builder)
        top = cgutils.alloca_once_value(builder, ir.Constant(INTEGERS, [0] * WIDTH))
        builder.store(ir.Constant(INTEGERS, [0] * WIDTH), top)
        with cgutils.for_range_slice(builder, e.number(0), values[1], e.number(WIDTH)) as (first, _):
            bits = e.vector(place(e, values[0], first, 4), INTEGERS)
            size = builder.and_(bits, ir.Constant(INTEGERS, [0x7FFFFFFF] * WIDTH))
            before = builder.load(top)
            builder.store(builder.select(builder.icmp_signed(">", size, before), size, before), top)
        highest = e.call(f"llvm.vector.reduce.smax.v{WIDTH}i32", I32, builder.load(top))
        return builder.zext(highest, ir.IntType(64))

    return types.int64(types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def place_digits(_typing: Any, row: Any, size: Any, factor: Any, out: Any) -> Any:
    """Write the digits of `size` fp32 at an address, times `factor`, to a row's place in its tile at `out`.

    `size` is a multiple of a vector's width.
    """

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        e = Emitter(context, builder)
        factor = e.spread(values[2])
        borrows = ir.Constant(INTEGERS, [_BORROWS] * WIDTH)
        with cgutils.for_range_slice(builder, e.number(0), values[1], e.number(WIDTH)) as (first, _):
            wide = builder.fmul(e.vector(place(e, values[0], first, 4)), factor)
            whole = e.call(f"llvm.rint.v{WIDTH}f32", VECTOR, wide)
            steps = builder.fptosi(whole, INTEGERS)
            bits = builder.xor(builder.add(steps, borrows), borrows)
            step = builder.mul(builder.udiv(first, e.number(DIGIT_DEPTH)), e.number(GROUP_STEP_BYTES))
            at = builder.add(builder.add(values[3], step), builder.urem(first, e.number(DIGIT_DEPTH)))
            for digit in range(DIGITS):
                shift = ir.Constant(INTEGERS, [8 * (DIGITS - 1 - digit)] * WIDTH)
                part = builder.trunc(builder.lshr(bits, shift), _I8)
                builder.store(part, place(e, at, e.number(digit * DIGIT_DEPTH), 1), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.int64), generate


@njit(nogil=True)  # type: ignore[untyped-decorator]
def cut_digits(row: NDArray[np.float32], m: int, address: int) -> None:
    """Write row m [padded to 32] as digits to the groups at an address."""
    size = row.shape[0]
    steps = (size + DIGIT_DEPTH - 1) // DIGIT_DEPTH
    group = address + m // GROUP_ROWS * (steps * GROUP_STEP_BYTES + CACHE_LINE_BYTES)
    at = group + m % GROUP_ROWS // TILE_GROUP * TILE_BYTES + m % TILE_GROUP * DIGITS * DIGIT_DEPTH
    source = row.ctypes.data
    exponent = max(largest_bits(source, size) >> 23, SMALLEST_EXPONENT)
    scale = carray(f32_at(group + steps * GROUP_STEP_BYTES), GROUP_ROWS)
    if exponent == 255:
        scale[m % GROUP_ROWS] = np.nan
        return
    place_digits(source, size, float_of_bits(np.uint32((283 - exponent) << 23)), at)
    scale[m % GROUP_ROWS] = float_of_bits(np.uint32((exponent - 5) << 23))

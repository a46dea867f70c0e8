"""Rows of numbers in 16 or 8 bits: written from fp32 and widened to it again, in vectors. Knows no plans, no caches.

A row is a head's values, in one of three formats. WHOLE: fp32. HALF: IEEE half precision, to the nearest, ties to
even; a row in which a value is not finite, or too large for it, begins with nan: so its product with anything is nan,
which an infinite key's would not be. BYTES: int8 and behind them the fp32 by which to multiply them, a 127th of the
row's largest magnitude; nan where a value is not finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kea.kernels.vectors import F32, I32, INTEGERS, VECTOR, WIDTH, Emitter

I8 = ir.IntType(8)
BYTE_LANES = ir.VectorType(I8, WIDTH)
SHORT_LANES = ir.VectorType(ir.IntType(16), WIDTH)
HALF_LANES = ir.VectorType(ir.HalfType(), WIDTH)

WHOLE, HALF, BYTES = range(3)
ITEM_BYTES = (4, 2, 1)

SCALE_BYTES = 4
STEPS = 127
"""Of an int8 on either side of zero."""

SMALLEST = float(np.float32(1e-30))
"""A row of smaller magnitudes becomes zeros: their scale would not be a normal number."""

Each = Callable[[Any, Any], None]


def each_vector(e: Emitter, size: Any, each: Each) -> None:
    """Emit `each(first value, mask)` for the vectors of a row; the mask is None for those that are full."""
    builder = e.builder
    full = builder.and_(size, e.number(-WIDTH))
    with cgutils.for_range_slice(builder, e.number(0), full, e.number(WIDTH)) as (first, _):
        each(first, None)
    left = builder.sub(size, full)
    with builder.if_then(builder.icmp_signed(">", left, e.number(0)), likely=False):
        numbers = ir.Constant(INTEGERS, list(range(WIDTH)))
        each(full, builder.icmp_signed("<", numbers, e.spread(builder.trunc(left, I32), INTEGERS)))


def load(e: Emitter, pointer: Any, kind: Any, mask: Any) -> Any:
    """Return the vector at a pointer; zeros where the mask has none."""
    if mask is None:
        return e.builder.load(pointer, typ=kind, align=1)
    name = f"llvm.masked.load.v{WIDTH}{_name(kind.element)}.p0"
    return e.call(name, kind, pointer, ir.Constant(I32, 1), mask, ir.Constant(kind, None))


def store(e: Emitter, value: Any, pointer: Any, mask: Any) -> None:
    if mask is None:
        e.builder.store(value, pointer, align=1)
    else:
        name = f"llvm.masked.store.v{WIDTH}{_name(value.type.element)}.p0"
        e.call(name, ir.VoidType(), value, pointer, ir.Constant(I32, 1), mask)


def _name(element: Any) -> str:
    return "f32" if element == F32 else str(element)


def place(e: Emitter, address: Any, index: Any, item_bytes: int) -> Any:
    """Return the pointer to an element from an address on."""
    return e.builder.inttoptr(e.builder.add(address, e.builder.mul(index, e.number(item_bytes))), ir.PointerType())


def note_unsound(e: Emitter, vector: Any, slot: Any) -> None:
    """Let a vector that stays 0 become nan where a value is not finite.

    By comparing: where sums may be reordered, what is added and taken away again is nothing, even nan.
    """
    size = e.call(f"llvm.fabs.v{WIDTH}f32", VECTOR, vector)
    is_finite = e.builder.fcmp_ordered("<", size, e.constant(float("inf")))
    e.builder.store(e.builder.select(is_finite, e.builder.load(slot), e.constant(float("nan"))), slot)


@intrinsic  # type: ignore[untyped-decorator]
def widen_half(_typing: Any, source: Any, size: Any, out: Any) -> Any:
    """Write `size` values of HALF at address `source` as fp32 to address `out`."""

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        e = Emitter(context, builder)

        def each(first: Any, mask: Any) -> None:
            bits = load(e, place(e, values[0], first, 2), SHORT_LANES, mask)
            wide = builder.fpext(builder.bitcast(bits, HALF_LANES), VECTOR)
            store(e, wide, place(e, values[2], first, 4), mask)

        each_vector(e, values[1], each)
        return context.get_dummy_value()

    return types.void(source, size, out), generate


@intrinsic  # type: ignore[untyped-decorator]
def narrow_half(_typing: Any, source: Any, size: Any, out: Any) -> Any:
    """Write a row of `size` values of fp32 at address `source` as HALF to address `out`."""

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        e = Emitter(context, builder)
        (unsound,) = e.sums(1)

        def each(first: Any, mask: Any) -> None:
            wide = load(e, place(e, values[0], first, 4), VECTOR, mask)
            half = builder.fptrunc(wide, HALF_LANES)
            store(e, builder.bitcast(half, SHORT_LANES), place(e, values[2], first, 2), mask)
            note_unsound(e, builder.fpext(half, VECTOR), unsound)

        each_vector(e, values[1], each)
        total = e.total(builder.load(unsound))
        with builder.if_then(builder.fcmp_unordered("!=", total, total), likely=False):
            builder.store(builder.fptrunc(total, ir.HalfType()), builder.inttoptr(values[2], ir.PointerType()), align=2)
        return context.get_dummy_value()

    return types.void(source, size, out), generate


@intrinsic  # type: ignore[untyped-decorator]
def widen_bytes(_typing: Any, source: Any, size: Any, out: Any) -> Any:
    """Write a row of `size` values of BYTES at address `source` as fp32 to address `out`."""

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        e = Emitter(context, builder)
        scale = e.spread(builder.load(place(e, values[0], values[1], 1), typ=F32, align=1))

        def each(first: Any, mask: Any) -> None:
            steps = load(e, place(e, values[0], first, 1), BYTE_LANES, mask)
            wide = builder.fmul(builder.sitofp(builder.sext(steps, INTEGERS), VECTOR), scale)
            store(e, wide, place(e, values[2], first, 4), mask)

        each_vector(e, values[1], each)
        return context.get_dummy_value()

    return types.void(source, size, out), generate


@intrinsic  # type: ignore[untyped-decorator]
def narrow_bytes(_typing: Any, source: Any, size: Any, out: Any) -> Any:
    """Write a row of `size` values of fp32 at address `source` as BYTES to address `out`."""

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        e = Emitter(context, builder)
        largest, unsound = e.sums(2)

        def look(first: Any, mask: Any) -> None:
            wide = load(e, place(e, values[0], first, 4), VECTOR, mask)
            size = e.call(f"llvm.fabs.v{WIDTH}f32", VECTOR, wide)
            builder.store(e.largest(size, builder.load(largest)), largest)
            note_unsound(e, wide, unsound)

        each_vector(e, values[1], look)
        top = e.call(f"llvm.vector.reduce.fmax.v{WIDTH}f32", F32, builder.load(largest))
        is_normal = builder.fcmp_ordered(">", top, ir.Constant(F32, SMALLEST))
        zero = ir.Constant(F32, 0.0)
        part = builder.select(is_normal, builder.fmul(top, ir.Constant(F32, float(np.float32(1 / STEPS)))), zero)
        inverse = e.spread(builder.select(is_normal, builder.fdiv(ir.Constant(F32, float(STEPS)), top), zero))

        def each(first: Any, mask: Any) -> None:
            wide = load(e, place(e, values[0], first, 4), VECTOR, mask)
            whole = e.call(f"llvm.rint.v{WIDTH}f32", VECTOR, builder.fmul(wide, inverse))
            steps = e.call(f"llvm.fptosi.sat.v{WIDTH}i32.v{WIDTH}f32", INTEGERS, whole)  # nan becomes 0
            store(e, builder.trunc(steps, BYTE_LANES), place(e, values[2], first, 1), mask)

        each_vector(e, values[1], each)
        scale = builder.fadd(part, e.total(builder.load(unsound)))
        builder.store(scale, place(e, values[2], values[1], 1), align=1)
        return context.get_dummy_value()

    return types.void(source, size, out), generate

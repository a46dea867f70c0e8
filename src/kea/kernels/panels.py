"""Products of few or many rows with weights in panels, in vector registers or in tiles. Knows no models.

A matrix W [N, K] lies in *panels* of 16 rows of W; within a panel the values of one k, or of the 2 or 4 next to each
other where they take fewer bits, lie together for all 16 rows: one unit of 64 bytes, [16, 64 / 16 / size]. So sums over
k need no reduction across a register, a panel is read from its begin to its end, and a unit of bfloat16 is a row of
Intel's tiles. A unit of fp16 is [2, 16] instead, so that its halves widen as they are: no tile takes them uncut.

Rows of x meet tiles as three bfloat16 numbers whose sum is x, exactly: 24 bits of an fp32 significand are 3 times 8.
Products of two bfloat16 are exact in fp32 and sums are formed in fp32, so the result is one of fp32 arithmetic. (The
decomposition is that of Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For
Higher-Precision Computations", 2019.) An fp32 weight is cut the same way; of the nine products, the three that are
below the last bit are left out. The 11 bits of an fp16 weight are two such numbers, none of them subnormal; one of six
products is left out. For int8 weights x is cut into digits (`kea.kernels.digits`).
"""

from __future__ import annotations

import functools
import platform
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, literally, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from kea.kernels.behind import ADD, CALL, GATE, add_rows, call_for_groups, gate_rows
from kea.kernels.machine import F32, I64, cpu_features, emit_prefetch, f32_at, i64_at, pointer
from kea.kernels.parts import INTS, LANES, UNIT_BYTES, VECTOR
from kea.kernels.program import FROM_BACK, Kernel

FULL, HALF, BYTE, FP16 = range(4)
VALUES = {FULL: 1, HALF: 2, BYTE: 4, FP16: 2}
WEIGHT_BYTES = (4, 2, 1, 2)
"""Kinds of weights (fp32, bfloat16, int8, fp16), how many values of one row of W a unit holds, bytes of a weight."""

WIDENS_FP16 = platform.machine() not in ("x86_64", "AMD64") or "f16c" in cpu_features()
"""Whether the processor widens fp16 in vectors. Without, such weights are held in fp32."""

HAS_WIDE = "avx512f" in cpu_features()
PANEL_BLOCK, MAX_SUMS = (2, 16) if HAS_WIDE else (1, 4)
"""Panels that are read at a time, and sums of a few rows that stay in vector registers: 16 of the 32 with AVX-512, 8 of
the 16 registers without."""

FEW_ROWS = 4
"""Rows of x that meet a panel at a time; more of them meet blocks of it (`block_products`)."""

HALVES = ir.VectorType(ir.HalfType(), LANES)

# Arguments of a product: addresses, sizes in bytes where not said otherwise; SCALE and BIAS are 0 where there is none.
# THEN: what becomes of a chunk's sums while they are in the core's cache, one of those in `kea.kernels.behind`.
(
    X,
    X_STRIDE,
    W,
    PANEL_BYTES,
    DEPTH,  # of k, in values
    OUT,
    OUT_STRIDE,
    NUM_ROWS,
    NUM_PANELS,
    CHUNK_ROWS,
    CHUNK_PANELS,
    SCALE,
    BIAS,
    CONFIG,
    TAIL_CONFIG,
    THEN,
    THEN_ARGUMENTS,
    NUM_ARGUMENTS,
) = range(18)


def emit_splat(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(one, ir.Constant(VECTOR, ir.Undefined), ir.Constant(INTS, None))


def _ints(value: int) -> Any:
    return ir.Constant(INTS, [value] * LANES)


def emit_widened(builder: Any, kind: int, address: Any) -> list[Any]:
    """Load a unit; return its values of each k as fp32 vectors over the 16 rows of W."""
    if kind == FULL:
        return [builder.load(pointer(builder, address), typ=VECTOR, align=4)]
    if kind == FP16:
        places = (address, builder.add(address, I64(UNIT_BYTES // 2)))
        return [builder.fpext(builder.load(pointer(builder, at), typ=HALVES, align=4), VECTOR) for at in places]
    bits = builder.load(pointer(builder, address), typ=INTS, align=4)
    if kind == HALF:
        halves = [builder.shl(bits, _ints(16)), builder.and_(bits, _ints(0xFFFF0000))]
        return [builder.bitcast(half, VECTOR) for half in halves]
    found = []
    for byte in range(4):
        signed = builder.ashr(builder.shl(bits, _ints(24 - 8 * byte)), _ints(24))
        found.append(builder.sitofp(signed, VECTOR))
    return found


def emit_fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
    return builder.call(builder.module.declare_intrinsic("llvm.fma.v16f32", (), kind), [a, b, c])


def emit_pair(builder: Any, low: Any, high: Any) -> Any:
    """Emit the upper halves of two vectors of fp32, next to each other: bfloat16, cut off and not rounded."""
    low = builder.lshr(builder.bitcast(low, INTS), _ints(16))
    return builder.or_(low, builder.and_(builder.bitcast(high, INTS), _ints(0xFFFF0000)))


def emit_cut(builder: Any, rest: list[Any], targets: list[Any]) -> None:
    """Emit what turns two vectors of fp32 into a row of each of some tiles: bfloat16 numbers whose sum they are."""
    for target in targets:
        builder.store(emit_pair(builder, *rest), pointer(builder, target), align=64)
        tops = [builder.bitcast(builder.and_(builder.bitcast(v, INTS), _ints(0xFFFF0000)), VECTOR) for v in rest]
        rest = [builder.fsub(value, top) for value, top in zip(rest, tops, strict=True)]


def streams(kind: int, num_rows: int) -> bool:
    """Whether few rows are multiplied with what was fetched ahead. With one or two rows and fp32, what the processor
    fetches by itself comes sooner: 12.9 ms became 14.2 otherwise (docs/performance.md).
    """
    return kind != FULL or num_rows > 2


def emit_zeros(builder: Any, count: int) -> list[Any]:
    zero = ir.Constant(VECTOR, [0.0] * LANES)
    slots = [cgutils.alloca_once(builder, VECTOR) for _ in range(count)]
    for slot in slots:
        builder.store(zero, slot)
    return slots


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def dot_panels(
    _typing: Any, kind: Any, rows: Any, x: Any, x_stride: Any, w: Any, panel_bytes: Any, units: Any,
    out: Any, out_stride: Any, ahead: Any,
) -> Any:  # fmt: skip
    """Write the products of `rows` rows of x and PANEL_BLOCK panels; kind and rows are literals.

    Meanwhile the panels `ahead` bytes behind these are fetched into the second cache, where that pays: see `streams`.
    """
    if not all(isinstance(number, types.IntegerLiteral) for number in (kind, rows)):
        return None
    values = VALUES[kind.literal_value]

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        _, _, x, x_stride, w, panel_bytes, units, out, out_stride, ahead = args
        num_rows, num_panels = rows.literal_value, PANEL_BLOCK
        num_sums = (
            values if num_rows * num_panels * values <= MAX_SUMS else 1
        )  # apart, they need not wait for each other
        sums = [[emit_zeros(builder, num_sums) for _ in range(num_panels)] for _ in range(num_rows)]
        with cgutils.for_range(builder, units, intp=I64) as loop:
            unit = builder.mul(loop.index, I64(UNIT_BYTES))
            first = builder.mul(loop.index, I64(4 * values))
            widened = []
            for p in range(num_panels):
                place = builder.add(builder.add(w, unit), builder.mul(I64(p), panel_bytes))
                if streams(kind.literal_value, num_rows):
                    emit_prefetch(builder, builder.add(place, ahead))
                widened.append(emit_widened(builder, kind.literal_value, place))
            for m in range(num_rows):
                row = builder.add(builder.add(x, first), builder.mul(I64(m), x_stride))
                for j in range(values):
                    at = pointer(builder, builder.add(row, I64(4 * j)))
                    value = emit_splat(builder, builder.load(at, typ=F32, align=4))
                    for p in range(num_panels):
                        slot = sums[m][p][j % num_sums]
                        builder.store(emit_fma(builder, value, widened[p][j], builder.load(slot, typ=VECTOR)), slot)
        for m in range(num_rows):
            row = builder.add(out, builder.mul(I64(m), out_stride))
            for p in range(num_panels):
                at = pointer(builder, builder.add(row, I64(UNIT_BYTES * p)))
                parts = [builder.load(slot, typ=VECTOR) for slot in sums[m][p]]
                builder.store(functools.reduce(builder.fadd, parts), at, align=4)
        return context.get_dummy_value()

    signature = types.void(kind, rows, *[types.int64] * 8)
    return signature, emit


@njit(nogil=True)  # type: ignore[untyped-decorator]
def finish(a: NDArray[np.int64], rows: tuple[int, int], panels: tuple[int, int], scale: int) -> None:
    """Scale some panels of a product and add the bias, where there are such; then do what is to be done with them.

    `rows`: the first one, how many; `panels`: the first one, one past the last; `scale`: address of the scales, or 0.
    """
    (row, num_rows), (panel, last) = rows, panels
    column, num_columns = panel * LANES, (last - panel) * LANES
    out = a[OUT] + row * a[OUT_STRIDE] + panel * UNIT_BYTES
    if scale != 0 or a[BIAS] != 0:
        for m in range(num_rows):
            sums = carray(f32_at(out + m * a[OUT_STRIDE]), num_columns)
            if scale != 0:
                factors = carray(f32_at(scale + 4 * column), num_columns)
                for n in range(num_columns):
                    sums[n] *= factors[n]
            if a[BIAS] != 0:
                terms = carray(f32_at(a[BIAS] + 4 * column), num_columns)
                for n in range(num_columns):
                    sums[n] += terms[n]
    if a[THEN] == ADD:
        add_rows(a[THEN_ARGUMENTS], (row, num_rows), (column, num_columns), (out, a[OUT_STRIDE]))
    elif a[THEN] == GATE:
        gate_rows(a[THEN_ARGUMENTS], (row, num_rows), (column, num_columns), (out, a[OUT_STRIDE]))
    elif a[THEN] == CALL:
        call_for_groups(a[THEN_ARGUMENTS], (row, num_rows), (column, num_columns))


@njit(nogil=True)  # type: ignore[untyped-decorator]
def rows_chunk(kind: int, address: int, chunk: int) -> None:
    """One chunk of a product of up to FEW_ROWS rows in vector registers, with some panels."""
    literally(kind)
    a = carray(i64_at(address), NUM_ARGUMENTS)
    row, panel, num_rows, last = part_of(a, chunk)
    x, x_stride, out_stride, panel_bytes = a[X] + row * a[X_STRIDE], a[X_STRIDE], a[OUT_STRIDE], a[PANEL_BYTES]
    units = a[DEPTH] * WEIGHT_BYTES[kind] // 4
    step = direction(chunk) * PANEL_BLOCK
    for i in range((last - panel) // PANEL_BLOCK):
        p = panel + i * PANEL_BLOCK if step > 0 else last - (i + 1) * PANEL_BLOCK
        w, out, ahead = a[W] + p * panel_bytes, a[OUT] + row * out_stride + p * UNIT_BYTES, step * panel_bytes
        if num_rows == FEW_ROWS:
            dot_panels(kind, FEW_ROWS, x, x_stride, w, panel_bytes, units, out, out_stride, ahead)
        elif num_rows == 3:
            dot_panels(kind, 3, x, x_stride, w, panel_bytes, units, out, out_stride, ahead)
        elif num_rows == 2:
            dot_panels(kind, 2, x, x_stride, w, panel_bytes, units, out, out_stride, ahead)
        elif num_rows == 1:
            dot_panels(kind, 1, x, x_stride, w, panel_bytes, units, out, out_stride, ahead)
    finish(a, (row, num_rows), (panel, last), a[SCALE])


@njit(nogil=True)  # type: ignore[untyped-decorator]
def direction(chunk: int) -> int:
    """Return -1 for a chunk whose panels are to be taken downwards, since its thread comes from the back; else 1."""
    return -1 if chunk >= FROM_BACK else 1


@njit(nogil=True)  # type: ignore[untyped-decorator]
def part_of(a: NDArray[np.int64], chunk: int) -> tuple[int, int, int, int]:
    """Return a chunk's first row of x, first panel, number of rows, and one past its last panel."""
    index = chunk & (FROM_BACK - 1)
    groups = (a[NUM_PANELS] + a[CHUNK_PANELS] - 1) // a[CHUNK_PANELS]
    row, panel = index // groups * a[CHUNK_ROWS], index % groups * a[CHUNK_PANELS]
    return row, panel, min(a[CHUNK_ROWS], a[NUM_ROWS] - row), min(panel + a[CHUNK_PANELS], a[NUM_PANELS])


def multiply_rows_full(address: int, chunk: int) -> None:
    rows_chunk(FULL, address, chunk)


def multiply_rows_half(address: int, chunk: int) -> None:
    rows_chunk(HALF, address, chunk)


def multiply_rows_byte(address: int, chunk: int) -> None:
    rows_chunk(BYTE, address, chunk)


def multiply_rows_fp16(address: int, chunk: int) -> None:
    rows_chunk(FP16, address, chunk)


ROWS_PRODUCTS = tuple(map(Kernel, (multiply_rows_full, multiply_rows_half, multiply_rows_byte, multiply_rows_fp16)))
"""Of up to FEW_ROWS rows, by the kind of the weights: x as fp32 rows [M, DEPTH]."""

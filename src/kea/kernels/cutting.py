"""Rows of numbers cut into the tiles of products whose both sides are cut, in vectors of AVX-512. Knows no plans.

Beside Intel's tiles (`kea.kernels.tiles`). A block is 32 rows of one side: for each 32 values of the sum's index (a
step) a tile of rows 0 to 15 and one of rows 16 to 31, for each of three bfloat16 parts (`kea.kernels.panels`).
Numbers of 16 bits are two parts, exactly; int8 is one. A unit of a tile is a pair of values that the processor adds
at a time: here those at n and n + 16 of a step, since two vectors become pairs so by a shift, without being permuted.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kea.kernels.narrow import BYTES, HALF, ITEM_BYTES, WHOLE
from kea.kernels.tiles import TILE_BYTES
from kea.kernels.vectors import F32, I32, I64, Emitter

LANES = 16
STEP = 32
PART_BYTES = 2 * TILE_BYTES
MAX_PARTS = 3
STEP_BYTES = MAX_PARTS * PART_BYTES
NUM_PARTS = {WHOLE: 3, HALF: 2, BYTES: 1}
"""Parts of a number by its format."""

VECTOR = ir.VectorType(F32, LANES)
INTS = ir.VectorType(I32, LANES)
ITEMS = {WHOLE: F32, HALF: ir.IntType(16), BYTES: ir.IntType(8)}
QUARTER = 4
ROW_BYTES = 128
"""From one row of logits, of 32 queries, to the next."""

# 2**x on [-1/2, 1/2], highest power first, to 2e-9: fitted by least squares, weighted until the largest relative errors
# were alike.
_POWERS = (
    0.00015345810846, 0.0013399931210, 0.0096184889615, 0.055503287770, 0.24022646893, 0.69314720574, 1.00000000055
)  # fmt: skip


def _literal(kind: Any) -> int | None:
    return kind.literal_value if isinstance(kind, types.IntegerLiteral) else None


def _ints(value: int) -> Any:
    return ir.Constant(INTS, [value] * LANES)


def _at(e: Emitter, address: Any, *offsets: Any) -> Any:
    for offset in offsets:
        address = e.builder.add(address, offset)
    return e.builder.inttoptr(address, ir.PointerType())


def _widened(e: Emitter, form: int, items: Any) -> Any:
    """16 items of a format as fp32; those of int8 without their scale."""
    if form == WHOLE:
        return items
    if form == HALF:
        return e.builder.fpext(e.builder.bitcast(items, ir.VectorType(ir.HalfType(), LANES)), VECTOR)
    return e.builder.sitofp(e.builder.sext(items, INTS), VECTOR)


def _cut(e: Emitter, low: Any, high: Any, num_parts: int, target: Any) -> None:
    """Write two vectors as a row of a tile of each part, from the address `target` on."""
    builder = e.builder
    rest = [low, high]
    for part in range(num_parts):
        bits = [builder.bitcast(value, INTS) for value in rest]
        tops = [builder.and_(value, _ints(0xFFFF0000)) for value in bits]
        row = builder.or_(builder.lshr(bits[0], _ints(16)), tops[1])
        builder.store(row, _at(e, target, e.number(part * PART_BYTES)), align=64)
        rest = [builder.fsub(value, builder.bitcast(top, VECTOR)) for value, top in zip(rest, tops, strict=True)]


def _emitter(emit: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        emit(Emitter(context, builder), values)
        return context.get_dummy_value()

    return generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def cut_row(_typing: Any, form: Any, source: Any, num_steps: Any, target: Any) -> Any:
    """Write a row of 32 * `num_steps` items at address `source` to a row of a block's tiles."""
    kind = _literal(form)
    if kind is None:
        return None

    def emit(e: Emitter, values: Any) -> None:
        items = ir.VectorType(ITEMS[kind], LANES)
        with cgutils.for_range(e.builder, values[2], intp=I64) as loop:
            first = e.builder.mul(loop.index, e.number(STEP * ITEM_BYTES[kind]))
            vectors = [
                e.builder.load(_at(e, values[1], first, e.number(n * LANES * ITEM_BYTES[kind])), typ=items, align=1)
                for n in range(2)
            ]
            low, high = (_widened(e, kind, vector) for vector in vectors)
            to = e.builder.add(values[3], e.builder.mul(loop.index, e.number(STEP_BYTES)))
            _cut(e, low, high, NUM_PARTS[kind], to)

    return types.void(form, types.int64, types.int64, types.int64), _emitter(emit)


def _joined(e: Emitter, parts: list[Any]) -> Any:
    """Vectors one behind the other, as one."""
    while len(parts) > 1:
        size = parts[0].type.count
        order = ir.Constant(ir.VectorType(I32, 2 * size), list(range(2 * size)))
        parts = [e.builder.shuffle_vector(a, b, order) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _mixed(e: Emitter, a: Any, b: Any, order: tuple[int, int, int, int]) -> Any:
    """Shuffle two vectors within each four of their lanes; lanes of b count from 4 on."""
    lanes = [4 * group + n if n < QUARTER else LANES + 4 * group + n - QUARTER for group in range(4) for n in order]
    return e.builder.shuffle_vector(a, b, ir.Constant(INTS, lanes))


def _turned(e: Emitter, rows: list[Any]) -> list[Any]:
    """From four vectors, whose n-th four lanes are values 0 to 3 of row n * 4 + i: each value of the rows 0 to 15."""
    a, b, c, d = rows
    low, high = (0, 4, 1, 5), (2, 6, 3, 7)
    ab, cd = _mixed(e, a, b, low), _mixed(e, c, d, low)
    above = _mixed(e, a, b, high), _mixed(e, c, d, high)
    first, second = (0, 1, 4, 5), (2, 3, 6, 7)
    return [_mixed(e, *pair, order) for pair in ((ab, cd), above) for order in (first, second)]


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def cut_turned(_typing: Any, form: Any, places: Any, offset: Any, num_items: Any, target: Any, block_bytes: Any) -> Any:
    """Write 32 rows of `num_items` items, which begin `offset` behind the addresses at `places`, as a step of as many
    rows of 32 values: row d has the rows' items d. `block_bytes`: from one block of 32 rows to the next.
    """
    kind = _literal(form)
    if kind is None:
        return None

    def emit(e: Emitter, values: Any) -> None:
        builder = e.builder
        _, places, offset, num_items, target, block_bytes = values
        items = ir.VectorType(ITEMS[kind], QUARTER)
        with cgutils.for_range(builder, builder.udiv(num_items, e.number(QUARTER)), intp=I64) as loop:
            first = builder.add(offset, builder.mul(loop.index, e.number(QUARTER * ITEM_BYTES[kind])))

            def piece(row: int) -> Any:
                place = builder.load(_at(e, places, e.number(8 * row)), typ=I64, align=8)
                return builder.load(_at(e, place, first), typ=items, align=1)

            halves = []
            for half in range(2):
                groups = [[piece(LANES * half + 4 * n + i) for n in range(4)] for i in range(4)]
                halves.append(_turned(e, [_widened(e, kind, _joined(e, group)) for group in groups]))
            block = builder.mul(builder.lshr(loop.index, e.number(3)), block_bytes)
            row = builder.mul(builder.and_(loop.index, e.number(7)), e.number(QUARTER * 64))
            for d in range(QUARTER):
                to = builder.add(builder.add(target, block), builder.add(row, e.number(64 * d)))
                _cut(e, halves[0][d], halves[1][d], NUM_PARTS[kind], to)

    return types.void(form, *[types.int64] * 5), _emitter(emit)


@intrinsic  # type: ignore[untyped-decorator]
def cut_columns(_typing: Any, places: Any, num_steps: Any, factor: Any, target: Any) -> Any:
    """Write 16 rows of 32 * `num_steps` values of fp32, whose addresses are at `places`, times a factor, as columns of
    the tiles of so many steps.
    """

    def emit(e: Emitter, values: Any) -> None:
        builder = e.builder
        places, num_steps, factor, target = values
        items, times = ir.VectorType(F32, QUARTER), e.spread(factor)
        with cgutils.for_range(builder, builder.mul(num_steps, e.number(QUARTER)), intp=I64) as loop:
            step, four = builder.lshr(loop.index, e.number(2)), builder.and_(loop.index, e.number(3))
            first = builder.add(builder.mul(step, e.number(4 * STEP)), builder.mul(four, e.number(4 * QUARTER)))
            halves = []
            for half in range(2):
                offset = builder.add(first, e.number(4 * LANES * half))
                groups = []
                for i in range(4):
                    rows = [builder.load(_at(e, places, e.number(8 * (4 * n + i))), typ=I64, align=8) for n in range(4)]
                    groups.append([builder.load(_at(e, row, offset), typ=items, align=4) for row in rows])
                halves.append(_turned(e, [_joined(e, group) for group in groups]))
            to = builder.add(builder.mul(step, e.number(STEP_BYTES)), builder.mul(four, e.number(QUARTER * 64)))
            for d in range(QUARTER):
                low, high = (builder.fmul(half[d], times) for half in halves)
                _cut(e, low, high, MAX_PARTS, builder.add(builder.add(target, to), e.number(64 * d)))

    return types.void(types.int64, types.int64, types.float32, types.int64), _emitter(emit)


@intrinsic  # type: ignore[untyped-decorator]
def turn_back(_typing: Any, source: Any, target: Any, stride: Any) -> Any:
    """Write 16 rows of 16 values of fp32, ROW_BYTES apart, as 16 rows `stride` bytes apart: row i has the values i."""

    def emit(e: Emitter, values: Any) -> None:
        builder = e.builder
        source, target, stride = values
        items = ir.VectorType(F32, QUARTER)
        with cgutils.for_range(builder, e.number(QUARTER), intp=I64) as loop:
            at = builder.add(source, builder.mul(loop.index, e.number(4 * QUARTER)))
            groups = [
                [builder.load(_at(e, at, e.number(ROW_BYTES * (4 * n + i))), typ=items, align=4) for n in range(4)]
                for i in range(4)
            ]
            for n, row in enumerate(_turned(e, [_joined(e, group) for group in groups])):
                index = builder.add(builder.mul(loop.index, e.number(QUARTER)), e.number(n))
                builder.store(row, _at(e, target, builder.mul(index, stride)), align=4)

    return types.void(types.int64, types.int64, types.int64), _emitter(emit)


def _power(e: Emitter, x: Any) -> Any:
    """Return 2**x for x below 128, to about 1e-7; 0 below -150, nan for nan."""
    builder = e.builder
    lowest = e.constant(-200.0)
    bounded = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
    whole = e.call("llvm.rint.v16f32", VECTOR, bounded)
    part = builder.fsub(bounded, whole)
    value = e.constant(_POWERS[0])
    for factor in _POWERS[1:]:
        value = e.fma(value, part, e.constant(factor))
    mask, current = ir.Constant(ir.IntType(16), -1), ir.Constant(I32, 4)
    return e.call("llvm.x86.avx512.mask.scalef.ps.512", VECTOR, value, whole, value, mask, current)


@intrinsic  # type: ignore[untyped-decorator]
def soften_begin(_typing: Any, scores: Any, num_rows: Any, state: Any, state_bytes: Any, factors: Any) -> Any:
    """Take the largest of `num_rows` (a multiple of 4) rows of logits into the state of 16 queries.

    Rows of fp32 at address `scores` are ROW_BYTES apart. At `state` are the largest logits, `state_bytes` behind the
    sums of the powers, which shrink with them; the factors of that go to address `factors`.
    """

    def emit(e: Emitter, values: Any) -> None:
        builder = e.builder
        scores, num_rows, state, state_bytes, factors = values
        top, total = _at(e, state), _at(e, state, state_bytes)
        before = builder.load(top, typ=VECTOR, align=4)
        slots = e.sums(4)
        for slot in slots:
            builder.store(before, slot)
        with cgutils.for_range(builder, builder.udiv(num_rows, e.number(4)), intp=I64) as loop:
            first = builder.mul(loop.index, e.number(4 * ROW_BYTES))
            for n, slot in enumerate(slots):
                row = builder.load(_at(e, scores, first, e.number(n * ROW_BYTES)), typ=VECTOR, align=4)
                builder.store(e.largest(row, builder.load(slot)), slot)
        a, b, c, d = (builder.load(slot) for slot in slots)
        highest = e.largest(e.largest(a, b), e.largest(c, d))
        factor = _power(e, builder.fsub(before, highest))
        builder.store(builder.fmul(builder.load(total, typ=VECTOR, align=4), factor), total, align=4)
        builder.store(highest, top, align=4)
        builder.store(factor, _at(e, factors), align=4)

    return types.void(*[types.int64] * 5), _emitter(emit)


@intrinsic  # type: ignore[untyped-decorator]
def soften_pair(_typing: Any, index: Any, scores: Any, state: Any, state_bytes: Any, scales: Any, target: Any) -> Any:
    """Turn two rows of logits of 16 queries, in units of log2(e), into powers of two of their distance to the largest.

    `index`: of the pair. The powers enter the state's sums; times the fp32 at `scales` of their rows, they become
    columns of the tiles of `target`.
    """

    def emit(e: Emitter, values: Any) -> None:
        builder = e.builder
        index, scores, state, state_bytes, scales, target = values
        step, pair = builder.lshr(index, e.number(4)), builder.and_(index, e.number(LANES - 1))
        first = builder.add(builder.mul(step, e.number(STEP)), pair)
        highest = builder.load(_at(e, state), typ=VECTOR, align=4)
        weights = []
        for n in range(2):
            at = builder.add(first, e.number(n * LANES))
            row = builder.load(_at(e, scores, builder.mul(at, e.number(ROW_BYTES))), typ=VECTOR, align=4)
            weights.append(_power(e, builder.fsub(row, highest)))
        total = _at(e, state, state_bytes)
        sum_of_both = builder.fadd(weights[0], weights[1])
        builder.store(builder.fadd(builder.load(total, typ=VECTOR, align=4), sum_of_both), total, align=4)
        for n in range(2):
            scale = builder.add(builder.mul(first, e.number(4)), e.number(4 * n * LANES))
            weights[n] = builder.fmul(weights[n], e.spread(builder.load(_at(e, scales, scale), typ=F32, align=4)))
        to = builder.add(builder.mul(step, e.number(STEP_BYTES)), builder.mul(pair, e.number(64)))
        _cut(e, weights[0], weights[1], MAX_PARTS, builder.add(target, to))

    return types.void(*[types.int64] * 6), _emitter(emit)


@intrinsic  # type: ignore[untyped-decorator]
def fetch_rows(_typing: Any, places: Any, count: Any, num_bytes: Any) -> Any:
    """Have rows of `num_bytes` brought into the second cache, whose addresses are at `places`. Any address will do."""

    def emit(e: Emitter, values: Any) -> None:
        builder = e.builder
        places, count, num_bytes = values
        flags = [ir.Constant(I32, value) for value in (0, 2, 1)]
        lines = builder.udiv(builder.add(num_bytes, e.number(63)), e.number(64))
        with cgutils.for_range(builder, count, intp=I64) as loop:
            row = builder.load(_at(e, places, builder.mul(loop.index, e.number(8))), typ=I64, align=8)
            with cgutils.for_range(builder, lines, intp=I64) as inner:
                place = _at(e, row, builder.mul(inner.index, e.number(64)))
                e.call("llvm.prefetch.p0", ir.VoidType(), place, *flags)

    return types.void(*[types.int64] * 3), _emitter(emit)

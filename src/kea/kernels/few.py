"""Attention of few queries to as many keys at a time as a vector has lanes: its inner steps, as LLVM's operations.

Each key and value is read once, widened in registers where it is not in fp32, and multiplied with all queries. Scores
have keys in their lanes; what a query has gathered stays in the first cache from one group of keys to the next. Knows
no plans.

Shared by all: `memory` is the address of the fp32 numbers of a block of queries; places in it are indices. At `tokens`
are the addresses (int64) at which rows of WIDTH tokens begin, and `head` is where in them, in bytes, the head's row
does. At `ahead` are those of the rows that are needed next, keys and values in turn, where the head's begin `key_head`
and `value_head` bytes behind: for every vector that is read, one of them is brought into the second cache, half of the
rows by the products with keys and half by those with values.
All are int64: arrays would be counted, atomically, with every call.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kea.kernels.narrow import BYTE_LANES, BYTES, HALF, HALF_LANES, ITEM_BYTES, SHORT_LANES, load
from kea.kernels.vectors import F32, I32, I64, INTEGERS, VECTOR, WIDTH, Emitter

QUAD = 4
"""Keys whose sums are formed at a time: as many as 128 bits of a vector have lanes."""

MAX_QUERIES = 4 if WIDTH == 16 else 2
"""Queries that a step takes: with more, their sums would not stay in registers."""

MAX_RISE = 16.0
"""How far above what its query's powers are relative to a logit may be, in units of log2, before that is raised: it
hardly is after the first keys, and sums of powers up to 2**16 are as exact as any other.
"""


def dots_of(form: int, count: int) -> Any:
    """Return a function that multiplies WIDTH keys with `count` queries, rows padded with zeros to whole vectors.

    memory[s + m * WIDTH + i] = sum over d < depth of the value d of key i, unscaled, * memory[q + m * row + d].
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def dots(
        _typing: Any, tokens: Any, head: Any, depth: Any, memory: Any, q: Any, s: Any, ahead: Any, value_head: Any
    ) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            e = Emitter(context, builder)
            token, place, to_come = (_pointer(e, values[i]) for i in (0, 3, 6))
            head_v, depth_v, q_v, s_v = (values[i] for i in (1, 2, 4, 5))
            heads = (head_v, values[7])
            quads = WIDTH // QUAD
            parts = cgutils.alloca_once(builder, VECTOR, size=count * quads)
            with cgutils.for_range(builder, e.number(quads)) as loop:
                numbers = [builder.add(builder.mul(loop.index, e.number(QUAD)), e.number(i)) for i in range(QUAD)]
                keys = [
                    (_row(e, token, number, head_v), _row(e, to_come, number, heads[i % 2]))
                    for i, number in enumerate(numbers)
                ]
                for m, sums in enumerate(_products(e, form, keys, (e.at(place, q_v), count, depth_v))):
                    part = builder.add(loop.index, e.number(m * quads))
                    e.put(_totals(e, sums), e.at(parts, part, element=VECTOR))
            for m in range(count):
                found = [e.vector(e.at(parts, e.number(m * quads + n), element=VECTOR)) for n in range(quads)]
                e.put(_joined(e, found), e.at(place, s_v, e.number(m * WIDTH)))
            return context.get_dummy_value()

        return types.void(tokens, head, depth, memory, q, s, ahead, value_head), generate

    return dots


def _products(e: Emitter, form: int, keys: list[tuple[Any, Any]], block: tuple[Any, int, Any]) -> list[list[Any]]:
    """Return the products of keys and queries, to be summed over their lanes.

    `keys`: rows, and those to be fetched meanwhile. `block`: the queries, their number, depth.
    """
    query, count, depth = block
    builder = e.builder
    full = builder.and_(depth, e.number(-WIDTH))
    left = builder.sub(depth, full)
    stride = builder.and_(builder.add(depth, e.number(WIDTH - 1)), e.number(-WIDTH))
    sums = e.sums(count * len(keys))

    def add(first: Any, mask: Any) -> None:
        parts = [e.vector(e.at(query, builder.mul(stride, e.number(m)), first)) for m in range(count)]
        for i, (key, to_come) in enumerate(keys):
            _fetch(e, _element(e, form, to_come, first))
            wide = _wide(e, form, _element(e, form, key, first), mask)
            for m, part in enumerate(parts):
                slot = sums[m * len(keys) + i]
                builder.store(e.fma(part, wide, builder.load(slot)), slot)

    with cgutils.for_range_slice(builder, e.number(0), full, e.number(WIDTH)) as (first, _):
        add(first, None)
    with builder.if_then(builder.icmp_signed(">", left, e.number(0)), likely=False):
        add(full, _first_lanes(e, left))
    found = [builder.load(slot) for slot in sums]
    return [found[m * len(keys) : (m + 1) * len(keys)] for m in range(count)]


def _totals(e: Emitter, vectors: list[Any]) -> Any:
    """Return sums of QUAD vectors' lanes: in each 128 bits, of the lanes of those, one vector behind the other."""
    a, b, c, d = vectors
    low, high = (0, WIDTH, 1, WIDTH + 1), (2, WIDTH + 2, 3, WIDTH + 3)
    ab, cd = (_folded(e, x, y, low, high) for x, y in ((a, b), (c, d)))
    return _folded(e, ab, cd, (0, 1, WIDTH, WIDTH + 1), (2, 3, WIDTH + 2, WIDTH + 3))


def _joined(e: Emitter, vectors: list[Any]) -> Any:
    """Return the sums over all 128 bits of such vectors, one vector behind the other."""
    every = range(WIDTH // QUAD)
    while len(vectors) > 1:
        even, odd = ([8 * n + 4 * side + lane for n in every for lane in range(QUAD)] for side in (0, 1))
        vectors = [_added(e, *pair, even, odd) for pair in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]


def _folded(e: Emitter, a: Any, b: Any, low: tuple[int, ...], high: tuple[int, ...]) -> Any:
    """Add lanes of two vectors, the same ones in each 128 bits."""
    starts = range(0, WIDTH, QUAD)
    lows, highs = ([start + lane for start in starts for lane in lanes] for lanes in (low, high))
    return _added(e, a, b, lows, highs)


def _added(e: Emitter, a: Any, b: Any, *lanes: list[int]) -> Any:
    kind = ir.VectorType(I32, WIDTH)
    first, second = (e.builder.shuffle_vector(a, b, ir.Constant(kind, numbers)) for numbers in lanes)
    return e.builder.fadd(first, second)


def soften_few(count: int) -> Any:
    """Return a function that turns `count` queries' logits of WIDTH keys, in units of log2(e), into powers of two.

    From s on. `t` is where what the powers are relative to lies, a query behind the other, `u` where the sums of the
    powers in each lane do. Where a logit is too large, those and the weighted values from o on, in rows of `stride`,
    shrink.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def soften(_typing: Any, memory: Any, s: Any, t: Any, u: Any, o: Any, stride: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            e = Emitter(context, builder)
            place = _pointer(e, values[0])
            s_v, t_v, u_v, o_v, stride_v = values[1:]
            for m in range(count):
                lanes = e.number(m * WIDTH)
                score, total, top = e.at(place, s_v, lanes), e.at(place, u_v, lanes), e.at(place, t_v, e.number(m))
                row = e.at(place, o_v, builder.mul(stride_v, e.number(m)))
                logits = e.vector(score)
                _raise(e, logits, top, (total, row, stride_v))
                powers = e.power(builder.fsub(logits, e.spread(e.scalar(top))))
                e.put(powers, score)
                e.put(builder.fadd(e.vector(total), powers), total)
            return context.get_dummy_value()

        return types.void(memory, s, t, u, o, stride), generate

    return soften


def _raise(e: Emitter, logits: Any, top: Any, sums: tuple[Any, Any, Any]) -> None:
    """Where a logit is far above what is at `top`, put the largest one there. `sums`: where those of powers and of
    values are, and the size of these."""
    builder = e.builder
    total, row, size = sums
    before = e.scalar(top)
    limit = builder.fadd(before, ir.Constant(F32, MAX_RISE))
    above = builder.bitcast(builder.fcmp_ordered(">", logits, e.spread(limit)), ir.IntType(WIDTH))
    with builder.if_then(builder.icmp_unsigned("!=", above, ir.Constant(ir.IntType(WIDTH), 0)), likely=False):
        highest = e.call(f"llvm.vector.reduce.fmax.v{WIDTH}f32", F32, logits)
        factor = e.power(e.spread(builder.fsub(before, highest)))
        builder.store(highest, top, align=4)
        e.put(builder.fmul(e.vector(total), factor), total)
        with cgutils.for_range_slice(builder, e.number(0), size, e.number(WIDTH)) as (first, _):
            e.put(builder.fmul(e.vector(e.at(row, first)), factor), e.at(row, first))


@intrinsic  # type: ignore[untyped-decorator]
def scale_few(_typing: Any, tokens: Any, head: Any, size: Any, memory: Any, s: Any, count: Any) -> Any:
    """Multiply `count` queries' numbers for WIDTH tokens, from s on, by the scales behind the tokens' `size` BYTES."""

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        e = Emitter(context, builder)
        token, place = (_pointer(e, values[i]) for i in (0, 3))
        head_v, size_v, s_v, count_v = (values[i] for i in (1, 2, 4, 5))
        scales = ir.Constant(VECTOR, ir.Undefined)
        for i in range(WIDTH):
            scale = _element(e, BYTES, _row(e, token, e.number(i), head_v), size_v)
            scales = builder.insert_element(scales, builder.load(scale, typ=F32, align=1), ir.Constant(I32, i))
        with cgutils.for_range(builder, count_v) as loop:
            row = e.at(place, s_v, builder.mul(loop.index, e.number(WIDTH)))
            e.put(builder.fmul(e.vector(row), scales), row)
        return context.get_dummy_value()

    return types.void(tokens, head, size, memory, s, count), generate


def weigh_few(form: int, count: int, vectors: int) -> Any:
    """Return a function that adds weighted values to `vectors` vectors of `count` queries' rows, `stride` apart.

    memory[o + m * stride + first + lane] += sum over i < num of memory[s + m * WIDTH + i] * the value first + lane of
    token i, unscaled; of a single vector only the lanes below `last` are read.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def weigh(
        _typing: Any,
        tokens: Any,
        head: Any,
        num: Any,
        first: Any,
        last: Any,
        memory: Any,
        s: Any,
        o: Any,
        stride: Any,
        ahead: Any,
        key_head: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            e = Emitter(context, builder)
            token, place, to_come = (_pointer(e, values[i]) for i in (0, 5, 9))
            head_v, num_v, first_v, last_v, s_v, o_v, stride_v = (values[i] for i in (1, 2, 3, 4, 6, 7, 8))
            mask = _first_lanes(e, last_v)
            span = (form, first_v, vectors)
            row = builder.add(o_v, first_v)
            out = [
                e.at(place, row, builder.mul(stride_v, e.number(m)), e.number(n * WIDTH))
                for m in range(count)
                for n in range(vectors)
            ]
            sums = e.sums(len(out))
            for slot, target in zip(sums, out, strict=True):
                builder.store(e.vector(target), slot)
            with cgutils.for_range(builder, num_v) as loop:
                value = _element(e, form, _row(e, token, loop.index, head_v), first_v)
                _fetch_row(e, _second_half(e, to_come, loop.index, (values[10], head_v)), span)
                parts = [
                    _wide(e, form, _element(e, form, value, e.number(n * WIDTH)), mask if vectors == 1 else None)
                    for n in range(vectors)
                ]
                for m in range(count):
                    share = e.spread(e.scalar(e.at(place, s_v, e.number(m * WIDTH), loop.index)))
                    for n, part in enumerate(parts):
                        slot = sums[m * vectors + n]
                        builder.store(e.fma(share, part, builder.load(slot)), slot)
            for slot, target in zip(sums, out, strict=True):
                e.put(builder.load(slot), target)
            with cgutils.for_range_slice(builder, num_v, e.number(WIDTH), e.number(1)) as (index, _):
                _fetch_row(e, _second_half(e, to_come, index, (values[10], head_v)), span)
            return context.get_dummy_value()

        arguments = (tokens, head, num, first, last, memory, s, o, stride, ahead, key_head)
        return types.void(*arguments), generate

    return weigh


def _pointer(e: Emitter, address: Any) -> Any:
    return e.builder.inttoptr(address, ir.PointerType())


def _row(e: Emitter, tokens: Any, number: Any, head: Any) -> Any:
    """Return the pointer to a token's row of the head."""
    address = e.scalar(e.at(tokens, number, element=I64), I64)
    return _pointer(e, e.builder.add(address, head))


def _element(e: Emitter, form: int, row: Any, index: Any) -> Any:
    return e.builder.gep(row, [e.builder.mul(index, e.number(ITEM_BYTES[form]))], source_etype=ir.IntType(8))


def _wide(e: Emitter, form: int, pointer: Any, mask: Any) -> Any:
    """Return a vector of values in fp32, those of BYTES not multiplied by their scale; zeros where a mask has none."""
    builder = e.builder
    if form == HALF:
        return builder.fpext(builder.bitcast(load(e, pointer, SHORT_LANES, mask), HALF_LANES), VECTOR)
    if form == BYTES:
        return builder.sitofp(builder.sext(load(e, pointer, BYTE_LANES, mask), INTEGERS), VECTOR)
    return load(e, pointer, VECTOR, mask)


def _first_lanes(e: Emitter, count: Any) -> Any:
    numbers = ir.Constant(INTEGERS, list(range(WIDTH)))
    return e.builder.icmp_signed("<", numbers, e.spread(e.builder.trunc(count, I32), INTEGERS))


def _second_half(e: Emitter, ahead: Any, number: Any, heads: tuple[Any, Any]) -> Any:
    """Return the pointer to a row ahead that is fetched by the products with values: of keys and of values in turn."""
    head = e.builder.select(e.builder.trunc(number, ir.IntType(1)), heads[1], heads[0])
    return _row(e, ahead, e.builder.add(number, e.number(WIDTH)), head)


def _fetch_row(e: Emitter, row: Any, span: tuple[int, Any, int]) -> None:
    """Fetch some vectors of a row. `span`: its form, the first element, how many vectors."""
    form, first, vectors = span
    for n in range(vectors):
        _fetch(e, _element(e, form, _element(e, form, row, first), e.number(n * WIDTH)))


def _fetch(e: Emitter, pointer: Any) -> None:
    e.call("llvm.prefetch.p0", ir.VoidType(), pointer, *(ir.Constant(I32, value) for value in (0, 2, 1)))

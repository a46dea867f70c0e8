"""Inner loops of attention in vectors of the processor's own width, written as LLVM's operations. Knows no plans.

numba makes vectors out of scalar loops, but not these: sums of many rows in registers at once, and with AVX-512 it
keeps to half the width. So each of these functions emits its loop itself; all of them are inlined into the kernels.

Shared by all: addresses are an array and an index of its first value; `offsets` holds where a token's row begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kea.kernels.machine import cpu_features

F32 = ir.FloatType()
I32 = ir.IntType(32)
I64 = ir.IntType(64)

WIDTH = 16 if "avx512f" in cpu_features() else 8
"""Values in a vector."""

TOKENS = 8 if WIDTH == 16 else 4
"""Keys that are multiplied at a time; scores are formed for a multiple of them."""

LANES = 3
"""Vectors of queries that a key is multiplied with at a time."""

ROWS = 4
"""Rows of the output to which values are added at a time."""

VECTORS = 4 if WIDTH == 16 else 2
"""Vectors of a row of the output to which values are added at a time."""

LINE_BYTES = 64
"""What a prefetch brings."""

LOWEST = np.float32(-1e30)
"""Stands for no logit yet: finite, so that its distance from one is."""

VECTOR = ir.VectorType(F32, WIDTH)
INTEGERS = ir.VectorType(I32, WIDTH)


class Emitter:
    """Emits operations on vectors into one function."""

    def __init__(self, context: Any, builder: Any) -> None:
        self.context = context
        self.builder = builder

    def pointer(self, array: Any, array_type: Any) -> Any:
        return self.context.make_array(array_type)(self.context, self.builder, array).data

    def at(self, pointer: Any, *indices: Any, element: Any = F32) -> Any:
        """Return the address of element `sum(indices)`."""
        total = indices[0]
        for index in indices[1:]:
            total = self.builder.add(total, index)
        return self.builder.gep(pointer, [total], source_etype=element)

    def number(self, value: int) -> Any:
        return ir.Constant(I64, value)

    def scalar(self, pointer: Any, element: Any = F32) -> Any:
        return self.builder.load(pointer, typ=element, align=8 if element is I64 else 4)

    def vector(self, pointer: Any, kind: Any = VECTOR) -> Any:
        return self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()), typ=kind, align=4)

    def put(self, value: Any, pointer: Any) -> None:
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer()), align=4)

    def spread(self, scalar: Any, kind: Any = VECTOR) -> Any:
        """Return a vector with the scalar in every lane."""
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
        lanes = ir.Constant(ir.VectorType(I32, WIDTH), [0] * WIDTH)
        return self.builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), lanes)

    def constant(self, value: float) -> Any:
        return ir.Constant(VECTOR, [float(np.float32(value))] * WIDTH)

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, arguments)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self.call(f"llvm.fma.v{WIDTH}f32", VECTOR, a, b, c)

    def largest(self, a: Any, b: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def power(self, x: Any) -> Any:
        """Return 2**x for x <= 126, to about 1e-7; 0 for what is too small for a normal number, nan for nan."""
        builder = self.builder
        lowest = self.constant(-126.0)
        is_small = builder.fcmp_ordered("<", x, lowest)
        bounded = builder.select(is_small, lowest, x)
        whole = self.call(f"llvm.rint.v{WIDTH}f32", VECTOR, bounded)
        part = builder.fsub(bounded, whole)
        value = self.constant(_POWERS[0])
        for factor in _POWERS[1:]:
            value = self.fma(value, part, self.constant(factor))
        exponent = builder.shl(builder.fptosi(whole, INTEGERS), ir.Constant(INTEGERS, [23] * WIDTH))
        bits = builder.add(builder.bitcast(value, INTEGERS), exponent)
        return builder.select(is_small, self.constant(0.0), builder.bitcast(bits, VECTOR))

    def total(self, vector: Any) -> Any:
        """Return the sum of the lanes, in any order."""
        name = f"llvm.vector.reduce.fadd.v{WIDTH}f32"
        function = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(F32, [F32, VECTOR]), name)
        return self.builder.call(function, [ir.Constant(F32, 0.0), vector], fastmath=("reassoc",))

    def sums(self, count: int) -> list[Any]:
        """Return `count` vectors of zeros that live in registers: LLVM turns such memory into them."""
        slots = [cgutils.alloca_once(self.builder, VECTOR) for _ in range(count)]
        for slot in slots:
            self.builder.store(self.constant(0.0), slot)
        return slots


# 2**x on [-1/2, 1/2], highest power first: ln(2)**n / n!, whose rest is below 2e-9.
_POWERS = [float(np.log(2.0) ** n / np.prod(np.arange(1.0, n + 1))) for n in range(7, -1, -1)]


def _emitting(arguments: Sequence[Any], emit: Callable[[Emitter, Any, Any], None]) -> Any:
    """Return what numba wants of an intrinsic without a result: its signature and its code."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit(Emitter(context, builder), signature.args, values)
        return context.get_dummy_value()

    return types.void(*arguments), generate


def scores_of(lanes: int) -> Any:
    """Return a function that multiplies TOKENS keys with `lanes` vectors of queries.

    scores[s + i * width + lane] = sum over d of keys[offsets[first + i] + head + d] * queries[q + d * width + lane].
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def multiply(
        _typing: Any,
        keys: Any,
        offsets: Any,
        first: Any,
        head: Any,
        queries: Any,
        q: Any,
        scores: Any,
        s: Any,
        width: Any,
        depth: Any,
    ) -> Any:
        def emit(e: Emitter, kinds: Any, values: Any) -> None:
            builder = e.builder
            key, offset, query, score = (e.pointer(values[i], kinds[i]) for i in (0, 1, 4, 6))
            first_v, head_v, q_v, s_v, width_v, depth_v = (values[i] for i in (2, 3, 5, 7, 8, 9))
            tokens = [
                e.at(key, e.scalar(e.at(offset, first_v, e.number(i), element=I64), I64), head_v) for i in range(TOKENS)
            ]
            sums = e.sums(TOKENS * lanes)
            with cgutils.for_range(builder, depth_v) as loop:
                row = builder.add(q_v, builder.mul(loop.index, width_v))
                vectors = [e.vector(e.at(query, row, e.number(n * WIDTH))) for n in range(lanes)]
                for i, token in enumerate(tokens):
                    value = e.spread(e.scalar(e.at(token, loop.index)))
                    for n in range(lanes):
                        slot = sums[i * lanes + n]
                        builder.store(e.fma(value, vectors[n], builder.load(slot)), slot)
            for i in range(TOKENS):
                row = builder.add(s_v, builder.mul(e.number(i), width_v))
                for n in range(lanes):
                    e.put(builder.load(sums[i * lanes + n]), e.at(score, row, e.number(n * WIDTH)))

        return _emitting((keys, offsets, first, head, queries, q, scores, s, width, depth), emit)

    return multiply


def weigh_by(vectors: int) -> Any:
    """Return a function that adds weighted values to `vectors` vectors of each of ROWS rows of the output.

    out[o + r * stride + lane] += sum over k of weights[w + k * width + r] * values[offsets[k] + head + lane]; of the
    last vector, only the lanes below `last` are read.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def weigh(
        _typing: Any,
        weights: Any,
        w: Any,
        width: Any,
        source: Any,
        offsets: Any,
        head: Any,
        count: Any,
        out: Any,
        o: Any,
        stride: Any,
        last: Any,
    ) -> Any:
        def emit(e: Emitter, kinds: Any, values: Any) -> None:
            builder = e.builder
            weight, value, offset, target = (e.pointer(values[i], kinds[i]) for i in (0, 3, 4, 7))
            w_v, width_v, head_v, count_v, o_v, stride_v, last_v = (values[i] for i in (1, 2, 5, 6, 8, 9, 10))
            places = [
                e.at(target, o_v, builder.mul(e.number(r), stride_v), e.number(n * WIDTH))
                for r in range(ROWS)
                for n in range(vectors)
            ]
            numbers = ir.Constant(INTEGERS, list(range(WIDTH)))
            mask = builder.icmp_signed("<", numbers, e.spread(builder.trunc(last_v, I32), INTEGERS))
            sums = e.sums(ROWS * vectors)
            for slot, place in zip(sums, places, strict=True):
                builder.store(e.vector(place), slot)
            with cgutils.for_range(builder, count_v) as loop:
                row = e.at(value, e.scalar(e.at(offset, loop.index, element=I64), I64), head_v)
                parts = [e.vector(e.at(row, e.number(n * WIDTH))) for n in range(vectors - 1)]
                parts.append(_masked(e, e.at(row, e.number((vectors - 1) * WIDTH)), mask))
                shares = builder.add(w_v, builder.mul(loop.index, width_v))
                for r in range(ROWS):
                    share = e.spread(e.scalar(e.at(weight, shares, e.number(r))))
                    for n in range(vectors):
                        slot = sums[r * vectors + n]
                        builder.store(e.fma(share, parts[n], builder.load(slot)), slot)
            for slot, place in zip(sums, places, strict=True):
                e.put(builder.load(slot), place)

        return _emitting((weights, w, width, source, offsets, head, count, out, o, stride, last), emit)

    return weigh


def _masked(e: Emitter, pointer: Any, mask: Any) -> Any:
    name = f"llvm.masked.load.v{WIDTH}f32.p0"
    place = e.builder.bitcast(pointer, VECTOR.as_pointer())
    return e.call(name, VECTOR, place, ir.Constant(I32, 4), mask, e.constant(0.0))


@intrinsic  # type: ignore[untyped-decorator]
def soften(_typing: Any, scores: Any, s: Any, width: Any, count: Any, state: Any, t: Any, step: Any) -> Any:
    """Turn `count` rows of logits, in units of log2(e), into powers of two of their distance from the largest so far.

    For one vector of queries, from scores[s] on, rows `width` apart. `state` from t on, each `step` behind the one
    before: the largest logits, the sums of the powers (both updated), the factors by which what was summed before is to
    shrink.
    """

    def emit(e: Emitter, kinds: Any, values: Any) -> None:
        builder = e.builder
        score, place = e.pointer(values[0], kinds[0]), e.pointer(values[4], kinds[4])
        s_v, width_v, count_v, t_v, step_v = (values[i] for i in (1, 2, 3, 5, 6))
        tops = e.at(place, t_v)
        totals = e.at(tops, step_v)
        factors = e.at(totals, step_v)
        before = e.vector(tops)
        top, total = e.sums(2)
        builder.store(before, top)
        with cgutils.for_range(builder, count_v) as loop:
            row = e.vector(e.at(score, s_v, builder.mul(loop.index, width_v)))
            builder.store(e.largest(row, builder.load(top)), top)
        highest = builder.load(top)
        factor = e.power(builder.fsub(before, highest))
        builder.store(builder.fmul(e.vector(totals), factor), total)
        with cgutils.for_range(builder, count_v) as loop:
            row_place = e.at(score, s_v, builder.mul(loop.index, width_v))
            weights = e.power(builder.fsub(e.vector(row_place), highest))
            e.put(weights, row_place)
            builder.store(builder.fadd(builder.load(total), weights), total)
        e.put(highest, tops)
        e.put(builder.load(total), totals)
        e.put(factor, factors)

    return _emitting((scores, s, width, count, state, t, step), emit)


@intrinsic  # type: ignore[untyped-decorator]
def conceal(
    _typing: Any, scores: Any, s: Any, width: Any, count: Any, bounds: Any, b: Any, step: Any, first: Any
) -> Any:
    """Set those of `count` rows of logits to -inf which a query does not see, for one vector of queries.

    `bounds` (int32) from b on: the first position that each sees, and `step` behind, where they end. Row i is position
    `first` + i.
    """

    def emit(e: Emitter, kinds: Any, values: Any) -> None:
        builder = e.builder
        score, bound = e.pointer(values[0], kinds[0]), e.pointer(values[4], kinds[4])
        s_v, width_v, count_v, b_v, step_v, first_v = (values[i] for i in (1, 2, 3, 5, 6, 7))
        lows = e.vector(e.at(bound, b_v, element=I32), INTEGERS)
        highs = e.vector(e.at(bound, b_v, step_v, element=I32), INTEGERS)
        with cgutils.for_range(builder, count_v) as loop:
            position = e.spread(builder.trunc(builder.add(first_v, loop.index), I32), INTEGERS)
            seen = builder.and_(builder.icmp_signed("<=", lows, position), builder.icmp_signed("<", position, highs))
            place = e.at(score, s_v, builder.mul(loop.index, width_v))
            e.put(builder.select(seen, e.vector(place), e.constant(float("-inf"))), place)

    return _emitting((scores, s, width, count, bounds, b, step, first), emit)


@intrinsic  # type: ignore[untyped-decorator]
def fetch(_typing: Any, source: Any, offsets: Any, count: Any, head: Any, num_bytes: Any, item_bytes: Any) -> Any:
    """Have `count` rows of `num_bytes` brought into the second cache, that begin at element offsets[i] + head from the
    address `source` on."""

    def emit(e: Emitter, kinds: Any, values: Any) -> None:
        builder = e.builder
        offset = e.pointer(values[1], kinds[1])
        base, count_v, head_v, bytes_v, item_v = (values[i] for i in (0, 2, 3, 4, 5))
        flags = [ir.Constant(I32, value) for value in (0, 2, 1)]
        lines = builder.udiv(builder.add(bytes_v, e.number(LINE_BYTES - 1)), e.number(LINE_BYTES))
        with cgutils.for_range(builder, count_v) as loop:
            first = builder.add(e.scalar(e.at(offset, loop.index, element=I64), I64), head_v)
            row = builder.add(base, builder.mul(first, item_v))
            with cgutils.for_range(builder, lines) as inner:
                place = builder.add(row, builder.mul(inner.index, e.number(LINE_BYTES)))
                e.call("llvm.prefetch.p0", ir.VoidType(), builder.inttoptr(place, ir.PointerType()), *flags)

    return _emitting((source, offsets, count, head, num_bytes, item_bytes), emit)

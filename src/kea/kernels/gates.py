"""Gated activations in vectors of the processor's own width, where a product leaves gates and what they gate. Knows no
models.

Columns of such a product alternate: 32 gates, the 32 values that these gate, and so on. So whoever computes some of
them has both, and 32 results are a step of the next product's tiles (`parts`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kea.kernels.machine import I64, pointer
from kea.kernels.parts import LANES, emit_parts
from kea.kernels.vectors import WIDTH, Emitter

GATES = 2 * LANES
"""Gates in a row, and behind them as many of what they gate."""

LOG2_E = float(np.log2(np.e))
HIGHEST = 126.0
"""The largest exponent of two that the vectors' power takes; one over more is zero here."""


def emit_gated(e: Emitter, gate: Any, up: Any, tanh: Any) -> Any:
    """Return act(gate) * up: SiLU, or GELU by tanh.

    Both are gate / (1 + e**-z): z is the gate itself, or twice the argument of tanh.
    """
    builder = e.builder
    cubic = e.fma(builder.fmul(e.constant(0.044715), builder.fmul(gate, gate)), gate, gate)
    z = builder.select(tanh, builder.fmul(e.constant(1.5957691216), cubic), gate)
    exponent = builder.fmul(z, e.constant(-LOG2_E))
    is_high = builder.fcmp_ordered(">", exponent, e.constant(HIGHEST))
    power = e.power(builder.select(is_high, e.constant(HIGHEST), exponent))
    return builder.fdiv(builder.fmul(gate, up), builder.fadd(power, e.constant(1.0)))


def _joined(builder: Any, vectors: list[Any]) -> list[Any]:
    """Vectors of 16 values from those of the processor's width."""
    if WIDTH == LANES:
        return vectors
    order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), list(range(LANES)))
    return [builder.shuffle_vector(*vectors[i : i + 2], order) for i in range(0, len(vectors), 2)]


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def gate_step(_typing: Any, cuts: Any, tanh: Any, places: Any, rows: Any) -> Any:
    """Write 32 results of each of `rows` rows, as fp32, or where the literal `cuts` is 1 as three parts in tiles.

    `places`: addresses of the first row's gates and of its results, bytes from one row to the next of either.
    """
    # Places are sums of whole numbers, never offsets from a pointer that was one: LLVM may form that pointer from null,
    # and where it splits a loop's first turn off, a load at offset 0 of it is nothing that is defined.
    if not isinstance(cuts, types.IntegerLiteral):
        return None

    def emit(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        e = Emitter(context, builder)
        source, target, stride, step = cgutils.unpack_tuple(builder, values[2])
        with cgutils.for_range(builder, values[3], intp=I64) as loop:
            row = builder.add(source, builder.mul(loop.index, stride))
            to = builder.add(target, builder.mul(loop.index, step))
            found = []
            for first in range(0, GATES, WIDTH):
                gate, up = (e.vector(pointer(builder, builder.add(row, I64(4 * at)))) for at in (first, GATES + first))
                found.append(emit_gated(e, gate, up, values[1]))
            if cuts.literal_value:
                emit_parts(builder, _joined(builder, found), to)
            else:
                for index, value in enumerate(found):
                    e.put(value, pointer(builder, builder.add(to, I64(4 * WIDTH * index))))
        return context.get_dummy_value()

    return types.void(cuts, types.boolean, types.UniTuple(types.int64, 4), types.int64), emit

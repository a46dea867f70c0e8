"""Gated activations in vectors of the processor's own width. Knows no models."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kea.kernels.vectors import I64, WIDTH, Emitter

LOG2_E = float(np.log2(np.e))
HIGHEST = 126.0
"""The largest exponent of two that the vectors' power takes; one over more is zero here."""


@intrinsic  # type: ignore[untyped-decorator]
def gate_vectors(_typing: Any, gate: Any, up: Any, out: Any, num_vectors: Any, tanh: Any) -> Any:
    """Write act(gate) * up for `num_vectors` * WIDTH values at these addresses: SiLU, or GELU by tanh.

    Both are gate / (1 + e**-z): z is the gate itself, or twice the argument of tanh.
    """

    def emit(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        e = Emitter(context, builder)
        pointers = [builder.inttoptr(address, ir.PointerType()) for address in values[:3]]
        with cgutils.for_range(builder, values[3], intp=I64) as loop:
            first = builder.mul(loop.index, e.number(WIDTH))
            g, u = (e.vector(e.at(pointer, first)) for pointer in pointers[:2])
            cubic = e.fma(builder.fmul(e.constant(0.044715), builder.fmul(g, g)), g, g)
            z = builder.select(values[4], builder.fmul(e.constant(1.5957691216), cubic), g)
            exponent = builder.fmul(z, e.constant(-LOG2_E))
            is_high = builder.fcmp_ordered(">", exponent, e.constant(HIGHEST))
            power = e.power(builder.select(is_high, e.constant(HIGHEST), exponent))
            value = builder.fdiv(builder.fmul(g, u), builder.fadd(power, e.constant(1.0)))
            e.put(value, e.at(pointers[2], first))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64, types.boolean), emit

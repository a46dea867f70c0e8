"""The kernels of the lean decoder that are not attention: matrix products, norms, rotary, activations. Knows no models.

Everything that a kernel calls is in this file: the cache on disk follows a file's own changes only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from kea.attention.jit import compiled

F32 = NDArray[np.float32]
Matrix = NDArray[Any]
Four = tuple[F32, F32, F32, F32]


@intrinsic  # type: ignore[untyped-decorator]
def widen(_typing: Any, value: Any) -> Any:
    """Return a weight as float32: uint16 is the upper half of one, which a shift restores exactly."""

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        if isinstance(value, types.Float):
            return args[0]
        wide = builder.zext(args[0], context.get_value_type(types.uint32))
        bits = builder.shl(wide, context.get_constant(types.uint32, 16))
        return builder.bitcast(bits, context.get_value_type(types.float32))

    return types.float32(value), emit


@intrinsic  # type: ignore[untyped-decorator]
def float_of_bits(_typing: Any, bits: Any) -> Any:
    """Read an int32's bits as a float32."""

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(bits), emit


@compiled(exact=True)
def exp(x: np.float32) -> np.float32:
    """Return e**x for |x| <= 87, to about 1e-7 (Cephes expf): plain arithmetic, so that loops of it become vectors."""
    x = min(max(x, np.float32(-87.0)), np.float32(87.0))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375)
    r -= n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * float_of_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))  # type: ignore[no-any-return]


@compiled()
def dots_4_by_1(x: F32, w: Four, out: F32, n: int) -> None:
    w0, w1, w2, w3 = w
    a0 = a1 = a2 = a3 = np.float32(0.0)
    for k in range(x.shape[0]):
        v = x[k]
        a0 += v * widen(w0[k])
        a1 += v * widen(w1[k])
        a2 += v * widen(w2[k])
        a3 += v * widen(w3[k])
    out[n], out[n + 1], out[n + 2], out[n + 3] = a0, a1, a2, a3


@compiled()
def dots_4_by_2(x: tuple[F32, F32], w: Four, out: tuple[F32, F32], n: int) -> None:
    x0, x1 = x
    w0, w1, w2, w3 = w
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.float32(0.0)
    for k in range(x0.shape[0]):
        p, q, r, s = widen(w0[k]), widen(w1[k]), widen(w2[k]), widen(w3[k])
        v = x0[k]
        a0, a1, a2, a3 = a0 + v * p, a1 + v * q, a2 + v * r, a3 + v * s
        v = x1[k]
        b0, b1, b2, b3 = b0 + v * p, b1 + v * q, b2 + v * r, b3 + v * s
    y0, y1 = out
    y0[n], y0[n + 1], y0[n + 2], y0[n + 3] = a0, a1, a2, a3
    y1[n], y1[n + 1], y1[n + 2], y1[n + 3] = b0, b1, b2, b3


@compiled()
def dots_4_by_4(x: Four, w: Four, out: Four, n: int) -> None:
    """Write the products of four rows of x and four of W, whose sums all stay in registers over one pass of both."""
    x0, x1, x2, x3 = x
    w0, w1, w2, w3 = w
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.float32(0.0)
    c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = np.float32(0.0)
    for k in range(x0.shape[0]):
        p, q, r, s = widen(w0[k]), widen(w1[k]), widen(w2[k]), widen(w3[k])
        v = x0[k]
        a0, a1, a2, a3 = a0 + v * p, a1 + v * q, a2 + v * r, a3 + v * s
        v = x1[k]
        b0, b1, b2, b3 = b0 + v * p, b1 + v * q, b2 + v * r, b3 + v * s
        v = x2[k]
        c0, c1, c2, c3 = c0 + v * p, c1 + v * q, c2 + v * r, c3 + v * s
        v = x3[k]
        d0, d1, d2, d3 = d0 + v * p, d1 + v * q, d2 + v * r, d3 + v * s
    y0, y1, y2, y3 = out
    y0[n], y0[n + 1], y0[n + 2], y0[n + 3] = a0, a1, a2, a3
    y1[n], y1[n + 1], y1[n + 2], y1[n + 3] = b0, b1, b2, b3
    y2[n], y2[n + 1], y2[n + 2], y2[n + 3] = c0, c1, c2, c3
    y3[n], y3[n + 1], y3[n + 2], y3[n + 3] = d0, d1, d2, d3


@compiled()
def dot(x: F32, w: Matrix) -> np.float32:
    total = np.float32(0.0)
    for k in range(x.shape[0]):
        total += x[k] * widen(w[k])
    return total


@compiled()
def product_rows(x: F32, w: Matrix, out: F32, lo: int, hi: int) -> None:
    """Write the columns [lo, hi) of x W^T: each weight is read from memory once, for all rows of x."""
    num_rows, n = x.shape[0], lo
    while n + 4 <= hi:
        four = (w[n], w[n + 1], w[n + 2], w[n + 3])
        m = 0
        while m + 4 <= num_rows:
            outs = (out[m], out[m + 1], out[m + 2], out[m + 3])
            dots_4_by_4((x[m], x[m + 1], x[m + 2], x[m + 3]), four, outs, n)
            m += 4
        if m + 2 <= num_rows:
            dots_4_by_2((x[m], x[m + 1]), four, (out[m], out[m + 1]), n)
            m += 2
        if m < num_rows:
            dots_4_by_1(x[m], four, out[m], n)
        n += 4
    while n < hi:
        for m in range(num_rows):
            out[m, n] = dot(x[m], w[n])
        n += 1


@compiled(parallel=True)
def product(x: F32, w: Matrix, out: F32, num_parts: int) -> None:
    """Write x [M, K] times W [N, K] transposed to `out` [M, N], the rows of W in as many parts as there are threads."""
    blocks = (w.shape[0] + 3) // 4
    for part in prange(num_parts):
        lo, hi = part * blocks // num_parts * 4, (part + 1) * blocks // num_parts * 4
        product_rows(x, w, out, lo, min(hi, w.shape[0]))


@compiled()
def widen_rows(w: Matrix, out: F32) -> None:
    """Write the values of the rows of W [N, K] to `out` [N, K]."""
    for n in range(w.shape[0]):
        row, wide = w[n], out[n]
        for k in range(row.shape[0]):
            wide[k] = widen(row[k])


@compiled()
def normalise(x: F32, norm: tuple[F32, F32], out: F32, eps: float, centred: bool) -> None:
    """Write the norm of one row: RMSNorm, or LayerNorm where `centred`. `out` may be `x`."""
    weight, bias = norm
    size = np.float32(x.shape[0])
    mean = np.float32(0.0)
    if centred:
        for k in range(x.shape[0]):
            mean += x[k]
        mean /= size
    square = np.float32(0.0)
    for k in range(x.shape[0]):
        square += (x[k] - mean) * (x[k] - mean)
    factor = np.float32(1.0) / np.sqrt(square / size + np.float32(eps))
    for k in range(x.shape[0]):
        out[k] = (x[k] - mean) * factor * weight[k]
    if bias.shape[0] > 0:
        for k in range(x.shape[0]):
            out[k] += bias[k]


@compiled()
def normalise_rows(x: F32, norm: tuple[F32, F32], out: F32, eps: float, centred: bool) -> None:
    for m in range(x.shape[0]):
        normalise(x[m], norm, out[m], eps, centred)


@compiled()
def add_bias(x: F32, bias: F32) -> None:
    for m in range(x.shape[0]):
        row = x[m]
        for n in range(bias.shape[0]):
            row[n] += bias[n]


@compiled()
def add_scaled(x: F32, y: F32, scale: float) -> None:
    """x += scale * y."""
    factor = np.float32(scale)
    for m in range(x.shape[0]):
        a, b = x[m], y[m]
        for k in range(a.shape[0]):
            a[k] += factor * b[k]


@compiled()
def rotate(head: F32, cos: F32, sin: F32, pairs: bool) -> None:
    """Turn the first 2 R values of a head by R phases: value r with r + R, or 2 r with 2 r + 1 where `pairs`."""
    half = cos.shape[0]
    if pairs:
        for r in range(half):
            a, b = head[2 * r], head[2 * r + 1]
            head[2 * r] = a * cos[r] - b * sin[r]
            head[2 * r + 1] = b * cos[r] + a * sin[r]
    else:
        for r in range(half):
            a, b = head[r], head[r + half]
            head[r] = a * cos[r] - b * sin[r]
            head[r + half] = b * cos[r] + a * sin[r]


@compiled()
def place_heads(
    source: F32, offset: int, out: F32, norm: tuple[F32, F32, float], phases: tuple[F32, F32, bool]
) -> None:
    """Copy columns of `source` [T, W] from `offset` on into heads `out` [T, H, D], normalised and rotated.

    `norm`: weight [D] or [H * D] ([0]: none), bias, eps. `phases`: cos and sin [T, R] ([T, 0]: none), pairs.
    """
    num_heads, size = out.shape[1], out.shape[2]
    weight, bias, eps = norm
    for t in range(source.shape[0]):
        row = source[t, offset : offset + num_heads * size]
        if weight.shape[0] > size:
            normalise(row, (weight, bias), row, eps, False)
        for h in range(num_heads):
            head = out[t, h]
            for d in range(size):
                head[d] = row[h * size + d]
            if weight.shape[0] == size:
                normalise(head, (weight, bias), head, eps, False)
            if phases[0].shape[1] > 0:
                rotate(head, phases[0][t], phases[1][t], phases[2])


@compiled()
def activate(x: F32, out: F32, tanh: bool) -> None:
    """Write act(gate) * up of rows [M, 2 I] = gate, up to `out` [M, I]: SiLU, or GELU by tanh.

    Both are gate / (1 + exp(-z)): z is the gate itself, or twice the argument of tanh.
    """
    size = out.shape[1]
    one = np.float32(1.0)
    for m in range(x.shape[0]):
        gate, up, row = x[m, :size], x[m, size:], out[m]
        if tanh:
            for i in range(size):
                g = gate[i]
                z = np.float32(1.5957691216) * (g + np.float32(0.044715) * g * g * g)
                row[i] = g / (one + exp(-z)) * up[i]
        else:
            for i in range(size):
                row[i] = gate[i] / (one + exp(-gate[i])) * up[i]

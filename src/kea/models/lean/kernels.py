"""What the lean decoder computes with single rows: norms, rotary, activations. Knows no models."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from kea.attention.jit import compiled

F32 = NDArray[np.float32]


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
def activate(gate: F32, up: F32, out: F32, tanh: bool) -> None:
    """Write act(gate) * up, as `kea.kernels.gates` does for whole vectors."""
    one = np.float32(1.0)
    for i in range(out.shape[0]):
        g = gate[i]
        z = np.float32(1.5957691216) * (g + np.float32(0.044715) * g * g * g) if tanh else g
        out[i] = g / (one + exp(-z)) * up[i]

"""What the lean decoder computes with single rows: norms, rotary, activations. Knows no models."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kea.kernels.jit import compiled

F32 = NDArray[np.float32]


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
    """Write act(gate) * up for what is left behind the whole vectors of `kea.kernels.gates`."""
    one = np.float32(1.0)
    for i in range(out.shape[0]):
        g = gate[i]
        z = np.float32(1.5957691216) * (g + np.float32(0.044715) * g * g * g) if tanh else g
        out[i] = g / (one + np.exp(-z)) * up[i]

"""What the lean decoder computes with single rows: embeddings, norms, rotary, activations, logits. Knows no models."""

from __future__ import annotations

import numpy as np
from numba import carray
from numpy.typing import NDArray

from kea.kernels.jit import compiled
from kea.kernels.machine import bits_of_float, f32_at, float_of_bits, i8_at, u16_at
from kea.kernels.panels import FP16, FULL, HALF
from kea.kernels.parts import LANES

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


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
def widened_fp16(bits: np.uint32) -> np.float32:
    """Return the value of an fp16 by its bits, in integers: not every processor widens it."""
    sign, body = np.uint32((bits & np.uint32(0x8000)) << np.uint32(16)), np.uint32(bits & np.uint32(0x7FFF))
    if body < np.uint32(0x0400):  # subnormal
        wide = bits_of_float(np.float32(body) * np.float32(2.0**-24))
    elif body < np.uint32(0x7C00):
        wide = np.uint32((body << np.uint32(13)) + np.uint32(112 << 23))
    else:
        wide = np.uint32((body << np.uint32(13)) | np.uint32(0x7F800000))
    return float_of_bits(np.uint32(sign | wide))  # type: ignore[no-any-return]


@compiled()
def place_weights(panels: tuple[int, int, int], index: int, scales: F32, out: F32) -> None:
    """Write row `index` of a matrix in panels. `panels`: their address, the bytes of one, the kind of weights."""
    address, panel_bytes, kind = panels
    lane = index % LANES
    first = address + index // LANES * panel_bytes
    if kind == FULL:
        whole = carray(f32_at(first), panel_bytes // 4)
        for k in range(out.shape[0]):
            out[k] = whole[k * LANES + lane]
    elif kind == HALF:
        half = carray(u16_at(first), panel_bytes // 2)
        for k in range(out.shape[0]):
            bits = np.uint32(half[k // 2 * 2 * LANES + 2 * lane + k % 2])
            out[k] = float_of_bits(np.uint32(bits << np.uint32(16)))
    elif kind == FP16:
        short = carray(u16_at(first), panel_bytes // 2)
        for k in range(out.shape[0]):
            out[k] = widened_fp16(np.uint32(short[k * LANES + lane]))
    else:
        byte = carray(i8_at(first), panel_bytes)
        for k in range(out.shape[0]):
            out[k] = np.float32(byte[k // 4 * 4 * LANES + 4 * lane + k % 4]) * scales[index]


@compiled(exact=True)
def place_phases(position: int, frequencies: F64, scale: np.float32, cos: F32, sin: F32) -> None:
    """Write cos and sin of a position's phases, formed in fp64 as `kea.models.rotary` does."""
    turn = 2.0 * np.pi
    for r in range(frequencies.shape[0]):
        phase = position * frequencies[r]
        turned = np.float32(phase - np.floor(phase / turn) * turn)
        cos[r] = np.cos(turned) * scale
        sin[r] = np.sin(turned) * scale


@compiled()
def finish_logits(logits: F32, scale: np.float32, cap: np.float32) -> None:
    """Multiply logits by `scale`; then x becomes cap * tanh(x / cap), where `cap` is not 0."""
    for v in range(logits.shape[0]):
        logits[v] *= scale
    if cap != np.float32(0.0):
        for v in range(logits.shape[0]):
            logits[v] = np.tanh(logits[v] / cap) * cap

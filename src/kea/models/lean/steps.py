"""The lean decoder's operations between its matrix products, as kernels of a program: each takes some rows of a step.

Owns the order of their arguments. What computes one row is in `kernels.py`. Knows no models.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit
from numpy.typing import NDArray

from kea.kernels.digits import cut_digits
from kea.kernels.gates import gate_vectors
from kea.kernels.machine import bits_of_float, f32_at, f64_at, float_of_bits, i64_at, number_at, u16_at
from kea.kernels.panels import BLOCK_ROWS, BLOCK_STEP_BYTES, BYTE, SPLITS
from kea.kernels.program import Kernel
from kea.kernels.tiles import TILE_BYTES, TILE_DEPTH, TILE_ROWS
from kea.kernels.vectors import WIDTH as LANES
from kea.models.lean.kernels import activate, finish_logits, normalise, place_heads, place_phases, place_weights

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

CHUNK_ROWS = 4

# Arguments of `begin`: TOKENS and POSITIONS [T]; the embedding's panels; KINDS [NUM_KINDS, NUM_KIND] of phases.
(B_ROWS, TOKENS, POSITIONS, HIDDEN, HIDDEN_WIDTH, PANELS, PANEL_BYTES, PANEL_KIND, SCALES, NUM_SCALES, EMBEDDING_SCALE,
 KINDS, NUM_KINDS, NUM_BEGIN) = range(14)  # fmt: skip

# A kind of phases: frequencies [R] fp64, R, the factor on cos and sin as bits of fp64, cos and sin [T, R].
FREQUENCIES, NUM_FREQUENCIES, PHASE_SCALE, PHASE_COS, PHASE_SIN, NUM_KIND = range(6)

# Arguments of `finish`.
LOGITS, LOGITS_WIDTH, NUM_LOGITS, VOCAB_SIZE, LOGIT_SCALE, LOGIT_CAP, NUM_FINISH = range(7)

# Arguments of `enter`: addresses, sizes in values, EPS and SCALE as bits of fp64. 0 is an address of nothing.
(X, WIDTH, Y, Y_WIDTH, NUM_ROWS, INDEX, AFTER, AFTER_BIAS, BEFORE, BEFORE_BIAS, EPS, SCALE, CENTRED, ROWS, ROWS_WIDTH,
 TILES, TILES_KIND, NUM_ENTER) = range(18)  # fmt: skip

# Arguments of `heads`.
(QKV, QKV_WIDTH, H_ROWS, NUM_HEADS, NUM_KV, KEY_DIM, VALUE_DIM, QUERY, KEY, VALUE, COS, SIN, PHASES, PAIRS, QUERY_NORM,
 QUERY_NORM_SIZE, QUERY_BIAS, KEY_NORM, KEY_NORM_SIZE, KEY_BIAS, H_EPS, NUM_HEADS_ARGUMENTS) = range(22)  # fmt: skip

# Arguments of `gate`.
BOTH, BOTH_WIDTH, G_ROWS, SIZE, TANH, GATED, GATED_WIDTH, G_TILES, G_TILES_KIND, NUM_GATE = range(10)

# Arguments of `cut`.
C_ROWS, C_WIDTH, C_NUM_ROWS, C_TILES, C_TILES_KIND, NUM_CUT = range(6)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def cut_parts(row: F32, m: int, address: int) -> None:
    """Write three bfloat16 for each value of a row, whose sum it is."""
    steps = row.shape[0] // TILE_DEPTH
    block = address + m // BLOCK_ROWS * steps * BLOCK_STEP_BYTES
    first = block + m % BLOCK_ROWS // TILE_ROWS * TILE_BYTES + m % TILE_ROWS * 64
    top = np.uint32(0xFFFF0000)
    for k in range(steps):
        part = carray(u16_at(first + k * BLOCK_STEP_BYTES), (SPLITS, 2 * TILE_BYTES // 2))
        for j in range(TILE_DEPTH):
            value = row[k * TILE_DEPTH + j]
            bits = bits_of_float(value)
            part[0, j] = np.uint16(bits >> np.uint32(16))
            value -= float_of_bits(np.uint32(bits & top))
            bits = bits_of_float(value)
            part[1, j] = np.uint16(bits >> np.uint32(16))
            value -= float_of_bits(np.uint32(bits & top))
            part[2, j] = np.uint16(bits_of_float(value) >> np.uint32(16))


@njit(nogil=True)  # type: ignore[untyped-decorator]
def cut_row(row: F32, m: int, address: int, kind: int) -> None:
    """Write row m [K padded to 32] to the tiles at an address, as a product with this kind of weights takes it."""
    if kind == BYTE:
        cut_digits(row, m, address)
    else:
        cut_parts(row, m, address)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def vector_at(address: int, size: int) -> F32:
    """The values at an address, or none where it is 0."""
    return carray(f32_at(address), size if address != 0 else 0)  # type: ignore[no-any-return]


def begin(address: int, chunk: int) -> None:
    """Rows of the embedding, as the tokens name them, and the phases of their positions."""
    a = carray(i64_at(address), NUM_BEGIN)
    scale, width = number_at(address + 8 * EMBEDDING_SCALE), a[HIDDEN_WIDTH]
    tokens, positions = carray(i64_at(a[TOKENS]), a[B_ROWS]), carray(i64_at(a[POSITIONS]), a[B_ROWS])
    scales = vector_at(a[SCALES], a[NUM_SCALES])
    kinds = carray(i64_at(a[KINDS]), (a[NUM_KINDS], NUM_KIND))
    for m in range(chunk * CHUNK_ROWS, min((chunk + 1) * CHUNK_ROWS, a[B_ROWS])):
        row = carray(f32_at(a[HIDDEN] + 4 * m * width), width)
        place_weights((a[PANELS], a[PANEL_BYTES], a[PANEL_KIND]), tokens[m], scales, row)
        if scale != np.float32(1.0):
            for k in range(width):
                row[k] *= scale
        for i in range(a[NUM_KINDS]):
            kind, size = kinds[i], kinds[i, NUM_FREQUENCIES]
            cos = carray(f32_at(kind[PHASE_COS] + 4 * m * size), size)
            sin = carray(f32_at(kind[PHASE_SIN] + 4 * m * size), size)
            factor = number_at(a[KINDS] + 8 * (i * NUM_KIND + PHASE_SCALE))
            place_phases(positions[m], carray(f64_at(kind[FREQUENCIES]), size), factor, cos, sin)


def finish(address: int, chunk: int) -> None:
    """Logits scaled and capped."""
    a = carray(i64_at(address), NUM_FINISH)
    scale, cap = number_at(address + 8 * LOGIT_SCALE), number_at(address + 8 * LOGIT_CAP)
    for m in range(chunk * CHUNK_ROWS, min((chunk + 1) * CHUNK_ROWS, a[NUM_LOGITS])):
        finish_logits(carray(f32_at(a[LOGITS] + 4 * m * a[LOGITS_WIDTH]), a[VOCAB_SIZE]), scale, cap)


def enter(address: int, chunk: int) -> None:
    """x += scale * y, with a norm behind the block where there is one; then the norm before the next block."""
    a = carray(i64_at(address), NUM_ENTER)
    eps, scale, width = number_at(address + 8 * EPS), number_at(address + 8 * SCALE), a[WIDTH]
    after = (vector_at(a[AFTER], width), vector_at(a[AFTER_BIAS], width))
    before = (vector_at(a[BEFORE], width), vector_at(a[BEFORE_BIAS], width))
    for m in range(chunk * CHUNK_ROWS, min((chunk + 1) * CHUNK_ROWS, a[NUM_ROWS])):
        source = m
        if a[INDEX] != 0:
            source = carray(i64_at(a[INDEX]), m + 1)[m]
        x = carray(f32_at(a[X] + 4 * source * width), width)
        if a[Y] != 0:
            y = carray(f32_at(a[Y] + 4 * source * a[Y_WIDTH]), width)
            if a[AFTER] != 0:
                normalise(y, after, y, eps, a[CENTRED] != 0)
            for k in range(width):
                x[k] += scale * y[k]
        if a[ROWS] == 0:
            continue
        row = carray(f32_at(a[ROWS] + 4 * m * a[ROWS_WIDTH]), a[ROWS_WIDTH])
        if a[BEFORE] != 0:
            normalise(x, before, row[:width], eps, a[CENTRED] != 0)
        else:
            for k in range(width):
                row[k] = x[k]
        if a[TILES] != 0:
            cut_row(row, m, a[TILES], a[TILES_KIND])


def heads(address: int, chunk: int) -> None:
    """Queries, keys and values as heads, normalised and rotated where the model does so."""
    a = carray(i64_at(address), NUM_HEADS_ARGUMENTS)
    eps = number_at(address + 8 * H_EPS)
    first = chunk * CHUNK_ROWS
    count = min(CHUNK_ROWS, a[H_ROWS] - first)
    source = carray(f32_at(a[QKV] + 4 * first * a[QKV_WIDTH]), (count, a[QKV_WIDTH]))
    num_heads, num_kv, key_dim, value_dim, turns = a[NUM_HEADS], a[NUM_KV], a[KEY_DIM], a[VALUE_DIM], a[PHASES]
    cos = carray(f32_at(a[COS] + 4 * first * turns), (count, turns))
    sin = carray(f32_at(a[SIN] + 4 * first * turns), (count, turns))
    query = carray(f32_at(a[QUERY] + 4 * first * num_heads * key_dim), (count, num_heads, key_dim))
    key = carray(f32_at(a[KEY] + 4 * first * num_kv * key_dim), (count, num_kv, key_dim))
    value = carray(f32_at(a[VALUE] + 4 * first * num_kv * value_dim), (count, num_kv, value_dim))
    none = vector_at(0, 0)
    query_norm = (
        vector_at(a[QUERY_NORM], a[QUERY_NORM_SIZE]), vector_at(a[QUERY_BIAS], a[QUERY_NORM_SIZE]), eps,
    )  # fmt: skip
    key_norm = (vector_at(a[KEY_NORM], a[KEY_NORM_SIZE]), vector_at(a[KEY_BIAS], a[KEY_NORM_SIZE]), eps)
    place_heads(source, 0, query, query_norm, (cos, sin, a[PAIRS] != 0))
    place_heads(source, num_heads * key_dim, key, key_norm, (cos, sin, a[PAIRS] != 0))
    still = (cos[:, :0], sin[:, :0], False)
    place_heads(source, (num_heads + num_kv) * key_dim, value, (none, none, eps), still)


def gate(address: int, chunk: int) -> None:
    """act(gate) * up."""
    a = carray(i64_at(address), NUM_GATE)
    first = chunk * CHUNK_ROWS
    count = min(CHUNK_ROWS, a[G_ROWS] - first)
    both = carray(f32_at(a[BOTH] + 4 * first * a[BOTH_WIDTH]), (count, a[BOTH_WIDTH]))
    gated = carray(f32_at(a[GATED] + 4 * first * a[GATED_WIDTH]), (count, a[GATED_WIDTH]))
    size, tanh = a[SIZE], a[TANH] != 0
    whole = size // LANES * LANES
    for m in range(count):
        at, to = a[BOTH] + 4 * (first + m) * a[BOTH_WIDTH], a[GATED] + 4 * (first + m) * a[GATED_WIDTH]
        gate_vectors(at, at + 4 * size, to, whole // LANES, tanh)
        activate(both[m, whole:size], both[m, size + whole : 2 * size], gated[m, whole:size], tanh)
        if a[G_TILES] != 0:
            cut_row(gated[m], first + m, a[G_TILES], a[G_TILES_KIND])


def cut(address: int, chunk: int) -> None:
    """Rows into tiles."""
    a = carray(i64_at(address), NUM_CUT)
    for m in range(chunk * CHUNK_ROWS, min((chunk + 1) * CHUNK_ROWS, a[C_NUM_ROWS])):
        row = carray(f32_at(a[C_ROWS] + 4 * m * a[C_WIDTH]), a[C_WIDTH])
        cut_row(row, m, a[C_TILES], a[C_TILES_KIND])


BEGIN, ENTER, HEADS, GATE, CUT, FINISH = map(Kernel, (begin, enter, heads, gate, cut, finish))

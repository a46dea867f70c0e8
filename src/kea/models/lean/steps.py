"""The lean decoder's operations between its matrix products, as kernels of a program: each takes some rows of a step.

Owns the order of their arguments. What computes one row is in `kernels.py`. Knows no models.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit
from numpy.typing import NDArray

from kea.attention.numba_kernels import store_head
from kea.kernels.behind import part_of_word
from kea.kernels.digits import cut_digits
from kea.kernels.machine import f32_at, f64_at, i64_at, number_at
from kea.kernels.panels import BYTE
from kea.kernels.parts import BLOCK_ROWS, cut_rows
from kea.kernels.program import Kernel
from kea.kernels.tiles import TILE_ROWS
from kea.models.lean.kernels import finish_logits, normalise, place_heads, place_phases, place_weights, rotate

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

# Arguments of `add`: addresses, sizes in values, bits of fp64.
(A_X, A_WIDTH, A_Y, A_Y_WIDTH, A_ROWS, AFTER, AFTER_BIAS, A_EPS, A_SCALE, A_CENTRED, NUM_ADD) = range(11)

# Arguments of `enter`, of rows or threads: addresses, sizes in values, EPS as bits of fp64. 0 is an address of nothing.
# Where TILES is not 0, rows become tiles, too. A thread has its own ROWS and TILES, so many bytes behind those of the
# one before.
(X, WIDTH, NUM_ROWS, INDEX, BEFORE, BEFORE_BIAS, EPS, CENTRED, ROWS, ROWS_WIDTH, TILES, TILES_KIND, ROWS_BYTES,
 TILES_BYTES, NUM_ENTER) = range(15)  # fmt: skip

# Arguments of `cut`, of rows or threads: as those of `enter`.
C_ROWS, C_WIDTH, C_NUM_ROWS, C_TILES, C_TILES_KIND, C_TILES_BYTES, NUM_CUT = range(7)

# Arguments of `heads`, and of `place_head`, which needs the attention's arguments of the LAYER.
(QKV, QKV_WIDTH, H_ROWS, NUM_HEADS, NUM_KV, KEY_DIM, VALUE_DIM, QUERY, KEY, VALUE, COS, SIN, PHASES, PAIRS, QUERY_NORM,
 QUERY_NORM_SIZE, QUERY_BIAS, KEY_NORM, KEY_NORM_SIZE, KEY_BIAS, H_EPS, LAYER,
 NUM_HEADS_ARGUMENTS) = range(23)  # fmt: skip


@njit(nogil=True)  # type: ignore[untyped-decorator]
def cut_all(source: int, width: int, rows: tuple[int, int], tiles: tuple[int, int]) -> None:
    """Write some rows [width: K padded to 32] to tiles, as a product takes them.

    `rows`: the first one's number, how many, not beyond a block; `tiles`: their address, the kind of weights.
    """
    row, num_rows = rows
    address, kind = tiles
    if kind == BYTE:
        for m in range(num_rows):
            cut_digits(carray(f32_at(source + 4 * m * width), width), row + m, address)
    else:
        cut_rows(source, width, rows, address)


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


def add(address: int, chunk: int) -> None:
    """x += scale * norm(y)."""
    a = carray(i64_at(address), NUM_ADD)
    eps, scale, width = number_at(address + 8 * A_EPS), number_at(address + 8 * A_SCALE), a[A_WIDTH]
    after = (vector_at(a[AFTER], width), vector_at(a[AFTER_BIAS], width))
    for m in range(chunk * CHUNK_ROWS, min((chunk + 1) * CHUNK_ROWS, a[A_ROWS])):
        x, y = carray(f32_at(a[A_X] + 4 * m * width), width), carray(f32_at(a[A_Y] + 4 * m * a[A_Y_WIDTH]), width)
        normalise(y, after, y, eps, a[A_CENTRED] != 0)
        for k in range(width):
            x[k] += scale * y[k]


@njit(nogil=True)  # type: ignore[untyped-decorator]
def enter_rows(address: int, rows: tuple[int, int], thread: int) -> None:
    """The norm before a block, of some rows, not beyond a block of tiles. `rows`: the first one's number, how many."""
    a = carray(i64_at(address), NUM_ENTER)
    eps, width = number_at(address + 8 * EPS), a[WIDTH]
    before = (vector_at(a[BEFORE], width), vector_at(a[BEFORE_BIAS], width))
    first, num_rows = rows
    out = a[ROWS] + thread * a[ROWS_BYTES] + 4 * first * a[ROWS_WIDTH]
    for m in range(num_rows):
        source = first + m
        if a[INDEX] != 0:
            source = carray(i64_at(a[INDEX]), source + 1)[source]
        x = carray(f32_at(a[X] + 4 * source * width), width)
        row = carray(f32_at(out + 4 * m * a[ROWS_WIDTH]), width)
        if a[BEFORE] != 0:
            normalise(x, before, row, eps, a[CENTRED] != 0)
        else:
            for k in range(width):
                row[k] = x[k]
    if a[TILES] != 0:
        cut_all(out, a[ROWS_WIDTH], rows, (a[TILES] + thread * a[TILES_BYTES], a[TILES_KIND]))


def enter(address: int, chunk: int) -> None:
    """The norm before a block, of the rows of a chunk."""
    first = chunk * CHUNK_ROWS
    num_rows = min(CHUNK_ROWS, carray(i64_at(address), NUM_ENTER)[NUM_ROWS] - first)
    enter_rows(address, (first, num_rows), 0)


def enter_alone(address: int, thread: int) -> None:
    """The norm before a block, of all rows, for one thread: half a block of tiles at a time."""
    total = carray(i64_at(address), NUM_ENTER)[NUM_ROWS]
    for first in range(0, total, TILE_ROWS):
        enter_rows(address, (first, min(TILE_ROWS, total - first)), thread)


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


def place_head(address: int, part: int) -> None:
    """One head of some rows, while it is in the cache of the core that formed it: a query is normalised, rotated and
    placed, a key is so where it is and then stored, a value is stored. `part`: see `kea.kernels.behind.part_word`.
    """
    a = carray(i64_at(address), NUM_HEADS_ARGUMENTS)
    eps, size, turns, stride = number_at(address + 8 * H_EPS), a[KEY_DIM], a[PHASES], 4 * a[QKV_WIDTH]
    row, num_rows, head = part_of_word(part)
    num_heads, num_kv = a[NUM_HEADS], a[NUM_KV]
    source = a[QKV] + row * stride + 4 * head * size
    is_query = head < num_heads
    if head < num_heads + num_kv:
        first = QUERY_NORM if is_query else KEY_NORM
        norm = (vector_at(a[first], a[first + 1]), vector_at(a[first + 2], a[first + 1]))
        for m in range(num_rows):
            values = carray(f32_at(source + m * stride), size)
            if is_query:
                query = carray(f32_at(a[QUERY] + 4 * ((row + m) * num_heads + head) * size), size)
                for d in range(size):
                    query[d] = values[d]
                values = query
            if a[first] != 0:
                normalise(values, norm, values, eps, False)
            if turns > 0:
                cos = carray(f32_at(a[COS] + 4 * (row + m) * turns), turns)
                sin = carray(f32_at(a[SIN] + 4 * (row + m) * turns), turns)
                rotate(values, cos, sin, a[PAIRS] != 0)
        if not is_query:
            store_head(a[LAYER], (head - num_heads, False), (row, num_rows), (source, stride))
    else:
        store_head(a[LAYER], (head - num_heads - num_kv, True), (row, num_rows), (source, stride))


def cut(address: int, chunk: int) -> None:
    """The rows of a chunk into tiles."""
    a = carray(i64_at(address), NUM_CUT)
    first = chunk * CHUNK_ROWS
    rows = (first, min(CHUNK_ROWS, a[C_NUM_ROWS] - first))
    cut_all(a[C_ROWS] + 4 * first * a[C_WIDTH], a[C_WIDTH], rows, (a[C_TILES], a[C_TILES_KIND]))


def cut_alone(address: int, thread: int) -> None:
    """All rows into a thread's own tiles."""
    a = carray(i64_at(address), NUM_CUT)
    tiles = (a[C_TILES] + thread * a[C_TILES_BYTES], a[C_TILES_KIND])
    for first in range(0, a[C_NUM_ROWS], BLOCK_ROWS):
        rows = (first, min(BLOCK_ROWS, a[C_NUM_ROWS] - first))
        cut_all(a[C_ROWS] + 4 * first * a[C_WIDTH], a[C_WIDTH], rows, tiles)


BEGIN, ADD, ENTER, HEADS, PLACE_HEAD = map(Kernel, (begin, add, enter, heads, place_head))
CUT, FINISH = map(Kernel, (cut, finish))
ENTER_ALONE, CUT_ALONE = Kernel(enter_alone), Kernel(cut_alone)

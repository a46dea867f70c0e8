"""The cache as the CPU kernels read and write it, in any format of `kea.kernels.narrow`. Knows no plans.

Addresses are those of a layer's keys or of its values. A token's row there has a row for each KV head.
"""

from __future__ import annotations

import numpy as np
from numba import carray
from numpy.typing import NDArray

from kea.kernels.jit import inner
from kea.kernels.machine import f32_at
from kea.kernels.narrow import BYTES, HALF, SCALE_BYTES, WHOLE, narrow_bytes, narrow_half, widen_bytes, widen_half

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@inner
def item_bytes(form: int) -> int:
    """Bytes of an element."""
    if form == WHOLE:
        return 4
    return 2 if form == HALF else 1


@inner
def row_width(form: int, dim: int) -> int:
    """Elements of a head's row."""
    return dim + SCALE_BYTES if form == BYTES else dim


@inner
def tile_source(form: int, address: int, shape: tuple[int, int, int], tile: int) -> F32:
    """Where a tile is read: the cache itself, [slots, KV, D], or where it is not in fp32 room for one tile of one head,
    [tile, 1, D]."""
    source: F32 = carray(f32_at(address), shape) if form == WHOLE else np.empty((tile, 1, shape[2]), np.float32)
    return source


@inner
def places_within(dims: tuple[int, int], tile: int) -> I64:
    """Where the rows of such a tile begin, for keys and for values [2, tile]."""
    places = np.empty((2, tile), np.int64)
    for i in range(tile):
        places[0, i], places[1, i] = i * dims[0], i * dims[1]
    return places


@inner
def widen(form: int, address: int, rows: tuple[I64, int, int], out: F32) -> None:
    """Write rows of one head to a tile. `rows`: offsets of the tokens' rows, in elements; where in them the head's
    begins; how many."""
    offsets, head, count = rows
    size = out.shape[2]
    for i in range(count):
        to = out.ctypes.data + 4 * i * size
        if form == HALF:
            widen_half(address + 2 * (offsets[i] + head), size, to)
        else:
            widen_bytes(address + offsets[i] + head, size, to)


@inner
def write_head(form: int, address: int, row: int, new: tuple[int, int]) -> None:
    """Write a head's keys or values of a token to a row of the cache. `new`: their address, how many."""
    source, size = new
    if form == WHOLE:
        values, out = carray(f32_at(source), size), carray(f32_at(address + 4 * row * size), size)
        for d in range(size):
            out[d] = values[d]
    elif form == HALF:
        narrow_half(source, size, address + 2 * row * size)
    else:
        narrow_bytes(source, size, address + row * (size + SCALE_BYTES))


@inner
def write_row(form: int, address: int, slot: int, new: tuple[F32, int]) -> None:
    """Write a token's keys or values to its slot. `new`: those of all heads, the number of one head's."""
    values, size = new
    num_heads = values.shape[0] // size
    if form == WHOLE:
        out = carray(f32_at(address + 4 * slot * values.shape[0]), values.shape[0])
        for d in range(values.shape[0]):
            out[d] = values[d]
        return
    for h in range(num_heads):
        write_head(form, address, slot * num_heads + h, (values.ctypes.data + 4 * h * size, size))

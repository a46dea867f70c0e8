"""Whether what a decode step wrote into the cache are finite numbers, by a kernel of its program. Knows no plans.

The last layer tells: what is not finite in a layer before reaches it through the residual stream.
"""

from __future__ import annotations

import numpy as np
from numba import carray
from numpy.typing import NDArray

from kea.attention.numba_cache import item_bytes, row_width, widen
from kea.attention.numba_kernels import (
    FORMAT,
    KEY_DIM,
    KEYS,
    NUM_KV,
    NUM_LAYER,
    NUM_ROWS,
    NUM_STEP,
    SLOTS,
    STEP,
    VALUE_DIM,
    VALUES,
)
from kea.kernels.jit import inner
from kea.kernels.machine import f32_at, i64_at
from kea.kernels.narrow import WHOLE
from kea.kernels.program import Kernel

F32 = NDArray[np.float32]

# Arguments of `look`: the address of the last LAYER's arguments, and of SPOILT [T], which is set for rows that are not
# finite and stays so.
LAYER, SPOILT, NUM_LOOK = range(3)


@inner
def sum_of_zeros(row: F32) -> np.float32:
    """Return 0, or what is no number where a value is none, or infinite."""
    zero = np.float32(0.0)
    for i in range(row.shape[0]):
        zero += row[i] * np.float32(0.0)
    return zero


@inner
def zero_of(form: int, address: int, slot: int, shape: tuple[int, int]) -> np.float32:
    """Return `sum_of_zeros` of a token's keys or values. `shape`: KV heads, values of one."""
    num_heads, dim = shape
    if form == WHOLE:
        return sum_of_zeros(carray(f32_at(address + 4 * slot * num_heads * dim), num_heads * dim))
    zero, wide = np.float32(0.0), np.empty((1, 1, dim), np.float32)
    size, offsets = row_width(form, dim), np.zeros(1, np.int64)
    for head in range(num_heads):
        widen(form, address + (slot * num_heads + head) * size * item_bytes(form), (offsets, 0, 1), wide)
        zero += sum_of_zeros(wide[0, 0])
    return zero


def look(address: int, row: int) -> None:
    """Look at what was written for a row of the step."""
    f = carray(i64_at(address), NUM_LOOK)
    a = carray(i64_at(f[LAYER]), NUM_LAYER)
    s = carray(i64_at(a[STEP]), NUM_STEP)
    slot = carray(i64_at(s[SLOTS]), s[NUM_ROWS])[row]
    zero = zero_of(a[FORMAT], a[KEYS], slot, (a[NUM_KV], a[KEY_DIM]))
    zero += zero_of(a[FORMAT], a[VALUES], slot, (a[NUM_KV], a[VALUE_DIM]))
    if not zero == np.float32(0.0):  # noqa: SIM201 - what is no number is neither
        carray(i64_at(f[SPOILT]), s[NUM_ROWS])[row] = 1


LOOK = Kernel(look)

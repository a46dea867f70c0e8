"""What becomes of a product's sums at once, while those of a chunk are in the cache of the core that formed them: they
are added to other rows, or are gates and what these gate, or become what a kernel makes of them. Knows no models.

Else another core would have them from there, a line in about 7 ns: more than it takes to compute with them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray, njit
from numpy.typing import NDArray

from kea.kernels.gates import GATES, gate_step
from kea.kernels.machine import call_kernel, f32_at, i64_at, number_at
from kea.kernels.parts import BLOCK_ROWS, LANES, UNIT_BYTES, place_of

NOTHING, ADD, GATE, CALL = range(4)
"""What may be done with them."""

# Arguments of ADD: rows [T, TO_STRIDE bytes], of which TO_WIDTH values take the sums times FACTOR (bits of fp64).
TO, TO_STRIDE, TO_WIDTH, FACTOR, NUM_ADD = range(5)

# Arguments of GATE: rows of GATED [T, GATED_STRIDE bytes]; or where TILES is not 0 tiles of three parts, of NUM_STEPS.
GATED, GATED_STRIDE, TILES, NUM_STEPS, TANH, NUM_GATE = range(6)

# Arguments of CALL: addresses of a kernel and its arguments, and how many columns make a group. It is called for each
# group with the word of a part as its chunk: see `part_word`.
CALL_CODE, CALL_ARGUMENTS, GROUP_COLUMNS, NUM_CALL = range(4)


class Then(NamedTuple):
    """One of the things that may be done, and its arguments. `columns`: a chunk has a multiple of them, as of 16."""

    work: int
    arguments: NDArray[np.int64]
    columns: int = LANES


@njit(nogil=True)  # type: ignore[untyped-decorator]
def part_word(row: int, num_rows: int, group: int) -> int:
    """Return a group of columns of some rows, the first one and how many (under 2**16 either), as one number."""
    return row << 32 | num_rows << 16 | group


@njit(nogil=True)  # type: ignore[untyped-decorator]
def part_of_word(word: int) -> tuple[int, int, int]:
    return word >> 32, word >> 16 & 0xFFFF, word & 0xFFFF


@njit(nogil=True, fastmath={"contract"})  # type: ignore[untyped-decorator]
def add_rows(address: int, rows: tuple[int, int], columns: tuple[int, int], sums: tuple[int, int]) -> None:
    """Add some columns of some rows, each the first one and how many, to others; `sums`: where they are, row stride."""
    a = carray(i64_at(address), NUM_ADD)
    (row, num_rows), (column, num_columns), (source, stride) = rows, columns, sums
    count = max(0, min(num_columns, a[TO_WIDTH] - column))
    factor = number_at(address + 8 * FACTOR)
    for m in range(num_rows):
        to = carray(f32_at(a[TO] + (row + m) * a[TO_STRIDE] + 4 * column), count)
        terms = carray(f32_at(source + m * stride), count)
        for n in range(count):
            to[n] += factor * terms[n]


@njit(nogil=True)  # type: ignore[untyped-decorator]
def gate_rows(address: int, rows: tuple[int, int], columns: tuple[int, int], sums: tuple[int, int]) -> None:
    """Gate some columns of some rows, whole steps of 32 gates and the 32 values behind them. `rows`: from a block's
    first one on, where they become tiles.
    """
    a = carray(i64_at(address), NUM_GATE)
    (row, num_rows), (column, num_columns), (source, stride) = rows, columns, sums
    tanh, first = a[TANH] != 0, column // (2 * GATES)
    for step in range(num_columns // (2 * GATES)):
        gates = source + 8 * GATES * step
        if a[TILES] == 0:
            to = a[GATED] + row * a[GATED_STRIDE] + 4 * GATES * (first + step)
            gate_step(0, tanh, (gates, to, stride, a[GATED_STRIDE]), num_rows)
            continue
        for m in range(0, num_rows, BLOCK_ROWS):
            to = place_of(a[TILES], row + m, first + step, a[NUM_STEPS])
            gate_step(1, tanh, (gates + m * stride, to, stride, UNIT_BYTES), min(BLOCK_ROWS, num_rows - m))


@njit(nogil=True)  # type: ignore[untyped-decorator]
def call_for_groups(address: int, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    """Call a kernel for each group of some columns of some rows, whole groups and, at the end, what is padding."""
    a = carray(i64_at(address), NUM_CALL)
    (row, num_rows), (column, num_columns) = rows, columns
    first = column // a[GROUP_COLUMNS]
    for group in range(first, first + num_columns // a[GROUP_COLUMNS]):
        call_kernel(a[CALL_CODE], a[CALL_ARGUMENTS], part_word(row, num_rows, group))

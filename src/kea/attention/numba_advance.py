"""How the work of a decode step becomes that of the next one, by a kernel at the program's end. Knows no plans.

For steps in which each row is the one query of its context: it sees one key more, and one less at the end of a window.
Where the page of the next key is not yet among the step's arguments, whoever adds it writes the key's slot, too.
"""

from __future__ import annotations

import numpy as np
from numba import carray
from numpy.typing import NDArray

from kea.attention.numba_kernels import (
    HIGHS,
    LOWS,
    NUM_ENTRIES,
    NUM_PAGES,
    NUM_ROWS,
    NUM_STEP,
    NUM_UNITS,
    PAGE_TOKENS,
    PAGES,
    ROWS_SEEN,
    SLOTS,
    TABLES,
    UNIT_FIELDS,
    UNITS,
)
from kea.kernels.machine import i64_at
from kea.kernels.program import Kernel

I64 = NDArray[np.int64]

UNIT_FIRST, UNIT_STOP = 0, 5
"""Of a unit's fields, as `numba_units` writes them."""

# Arguments of `advance`: the address of the step's arguments, the rows' POSITIONS [T], the WINDOW (0: none).
STEP, POSITIONS, WINDOW, NUM_ADVANCE = range(4)


def advance(address: int, _chunk: int) -> None:
    """Move every row's bounds, the units that end with a row, and the slots of new keys, by a token."""
    a = carray(i64_at(address), NUM_ADVANCE)
    s = carray(i64_at(a[STEP]), NUM_STEP)
    positions = carray(i64_at(a[POSITIONS]), s[NUM_ROWS])
    rows = carray(i64_at(s[ROWS_SEEN]), s[NUM_ENTRIES])
    lows, highs = carray(i64_at(s[LOWS]), s[NUM_ENTRIES]), carray(i64_at(s[HIGHS]), s[NUM_ENTRIES])
    units = carray(i64_at(s[UNITS]), (s[NUM_UNITS], UNIT_FIELDS))
    for n in range(s[NUM_UNITS]):
        first = units[n, UNIT_FIRST]
        end = positions[rows[first]] + 1
        if highs[first] == end and units[n, UNIT_STOP] == end:
            units[n, UNIT_STOP] += 1
    for entry in range(s[NUM_ENTRIES]):
        end = positions[rows[entry]] + 1
        if highs[entry] == end:
            highs[entry] += 1
        if a[WINDOW] > 0:
            lows[entry] = max(lows[entry], end + 1 - a[WINDOW])
    slots, tables = carray(i64_at(s[SLOTS]), s[NUM_ROWS]), carray(i64_at(s[TABLES]), s[NUM_ROWS])
    pages = carray(i64_at(s[PAGES]), s[NUM_PAGES])
    for row in range(s[NUM_ROWS]):
        place = tables[row] + (positions[row] + 1) // s[PAGE_TOKENS]
        if 0 <= place < s[NUM_PAGES]:
            slots[row] = pages[place] * s[PAGE_TOKENS] + (positions[row] + 1) % s[PAGE_TOKENS]


ADVANCE = Kernel(advance)

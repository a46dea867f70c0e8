"""What stands between two rounds of a program: each row's next token is drawn, and the row goes on to it.

Drawn by the kernel of `kea.kernels.draws`, with the noise that is due. A row is spoilt, from then on, by keys or values
that are not finite. Knows no models, no requests.
"""

from __future__ import annotations

from numba import carray

from kea.kernels.draws import DRAWN, NOISE, NUM_DRAW, NUM_NOISE
from kea.kernels.machine import call_kernel, i64_at
from kea.kernels.program import Kernel

# Arguments of `choose`: the drawing kernel's CODE and arguments; by row [R] the round (ROUNDS), its token (IDS) and its
# position (POSITIONS), which go on. OUT [CAPACITY, R]: the tokens, as they were drawn; round n in line n % CAPACITY.
# SPOILT [R]: whether a row's token is `SPOILT_TOKEN`, whatever was drawn.
CODE, DRAW_ARGUMENTS, NUM_ROWS, ROUNDS, IDS, POSITIONS, OUT, CAPACITY, SPOILT, NUM_CHOOSE = range(10)

SPOILT_TOKEN = -2


def choose(address: int, row: int) -> None:
    """Draw a row's token; the row goes on to it, or to some token where there was none to draw."""
    a = carray(i64_at(address), NUM_CHOOSE)
    d = carray(i64_at(a[DRAW_ARGUMENTS]), NUM_DRAW)
    call_kernel(a[CODE], a[DRAW_ARGUMENTS], row)
    token = carray(i64_at(d[DRAWN]), a[NUM_ROWS])[row]
    carray(i64_at(d[NOISE]), (a[NUM_ROWS], NUM_NOISE))[row, 1] += 1
    rounds = carray(i64_at(a[ROUNDS]), a[NUM_ROWS])
    is_spoilt = carray(i64_at(a[SPOILT]), a[NUM_ROWS])[row] != 0
    line = rounds[row] % a[CAPACITY]
    carray(i64_at(a[OUT]), (a[CAPACITY], a[NUM_ROWS]))[line, row] = SPOILT_TOKEN if is_spoilt else token
    carray(i64_at(a[IDS]), a[NUM_ROWS])[row] = max(token, 0)
    carray(i64_at(a[POSITIONS]), a[NUM_ROWS])[row] += 1
    rounds[row] += 1


CHOOSE = Kernel(choose)

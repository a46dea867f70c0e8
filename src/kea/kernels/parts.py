"""Rows of x as three bfloat16 numbers whose sum they are, for products by Intel's tiles (`panels`). Knows no models.

Layout: blocks of 32 rows, each [padded K / 32, 3 parts, 32 rows, 32] bfloat16: two tiles of 16 rows for each part. It
is written a step of k after the other, all rows of it: in the order of memory, so that the processor has the lines
before they are needed (7 us for 32 rows of 1,536 values, a row after the other 11).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from kea.kernels.machine import F32, I64, pointer
from kea.kernels.tiles import TILE_BYTES, TILE_DEPTH

LANES = 16
UNIT_BYTES = 64
BLOCK_ROWS = 32
SPLITS = 3
PART_BYTES = 2 * TILE_BYTES
BLOCK_STEP_BYTES = SPLITS * PART_BYTES
"""Rows that one pass over tiles takes; bytes of those rows for 32 values of k: three parts of two tiles."""

VECTOR = ir.VectorType(F32, LANES)
INTS = ir.VectorType(ir.IntType(32), LANES)

_HALVES = ir.VectorType(ir.IntType(16), 2 * LANES)
_UPPER = ir.Constant(ir.VectorType(ir.IntType(32), 2 * LANES), list(range(1, 4 * LANES, 2)))


def emit_parts(builder: Any, rest: list[Any], target: Any) -> None:
    """Emit what writes two vectors as 32 numbers of a row to the tiles of each part, the first at `target`."""
    for part in range(SPLITS):
        low, high = (builder.bitcast(value, _HALVES) for value in rest)
        row = builder.shuffle_vector(low, high, _UPPER)
        builder.store(row, pointer(builder, builder.add(target, I64(part * PART_BYTES))), align=UNIT_BYTES)
        bits = [builder.bitcast(value, INTS) for value in rest]
        tops = [builder.and_(value, ir.Constant(INTS, [0xFFFF0000] * LANES)) for value in bits]
        rest = [builder.fsub(value, builder.bitcast(top, VECTOR)) for value, top in zip(rest, tops, strict=True)]


@intrinsic  # type: ignore[untyped-decorator]
def cut_step(_typing: Any, rows: Any, stride: Any, num_rows: Any, target: Any) -> Any:
    """Write 32 values of each of some rows, `stride` bytes apart, to the tiles of a step, in which the first's place is
    `target`.
    """

    def emit(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        rows, stride, num_rows, target = values
        with cgutils.for_range(builder, num_rows, intp=I64) as loop:
            row = builder.add(rows, builder.mul(loop.index, stride))
            places = [pointer(builder, builder.add(row, I64(4 * LANES * i))) for i in range(2)]
            both = [builder.load(place, typ=VECTOR, align=4) for place in places]
            emit_parts(builder, both, builder.add(target, builder.mul(loop.index, I64(UNIT_BYTES))))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), emit


@njit(nogil=True)  # type: ignore[untyped-decorator]
def place_of(address: int, row: int, step: int, num_steps: int) -> int:
    """Return where a row's 32 values of a step have their first part."""
    block = address + (row // BLOCK_ROWS * num_steps + step) * BLOCK_STEP_BYTES
    return block + row % BLOCK_ROWS * UNIT_BYTES


@njit(nogil=True)  # type: ignore[untyped-decorator]
def cut_rows(source: int, width: int, rows: tuple[int, int], address: int) -> None:
    """Cut some rows of `width` values (a multiple of 32), the first of which is at `source`. `rows`: its number, how
    many; not beyond a block."""
    row, num_rows = rows
    num_steps = width // TILE_DEPTH
    for step in range(num_steps):
        place = place_of(address, row, step, num_steps)
        cut_step(source + 4 * TILE_DEPTH * step, 4 * width, num_rows, place)

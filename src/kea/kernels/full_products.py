"""Products with fp32 and fp16 weights by Intel's tiles: a core cuts weights into bfloat16 parts in its first cache,
those of a step of k while its tiles multiply the step before (`panels`). Knows no models.

For each block of 32 rows they are cut anew: done meanwhile, it costs less than to read from the second cache what was
cut once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import carray, literally, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from kea.kernels import tiles
from kea.kernels.machine import I64, emit_prefetch, f32_at
from kea.kernels.panels import (
    CONFIG,
    DEPTH,
    FP16,
    FULL,
    OUT,
    OUT_STRIDE,
    PANEL_BYTES,
    SCALE,
    TAIL_CONFIG,
    VALUES,
    WEIGHT_BYTES,
    W,
    X,
    direction,
    emit_cut,
    emit_widened,
    finish,
    part_of,
)
from kea.kernels.parts import BLOCK_ROWS, BLOCK_STEP_BYTES, LANES, SPLITS, UNIT_BYTES
from kea.kernels.tiles import TILE_BYTES, TILE_DEPTH, TILE_ROWS, emit_dot, emit_load

PARTS = {FULL: SPLITS, FP16: 2}
"""By the kind of weights: numbers of eight bits that one is the sum of."""

PART_BYTES = 2 * TILE_BYTES
CUT_BYTES = SPLITS * PART_BYTES
"""One part of a step of k of two panels; all of them, at most."""

AHEAD = 3
"""Steps of k between what is fetched from memory and what is cut."""


@dataclass(frozen=True, slots=True)
class Dot:
    """A product of registers, and the loads before it: of which register, how many bytes behind the first."""

    total: int
    rows: int
    columns: int
    weights: tuple[tuple[int, int], ...] = ()
    x: tuple[tuple[int, int], ...] = ()


def dots(num_parts: int, tall: bool) -> list[Dot]:
    """The products of a step of up to 32 or 16 rows with two panels: of nine of three parts and three, the six largest;
    of six of three and two, the five largest.

    Sums are in registers 0 to 3: of two times 16 rows; or of 16 rows, those of the weights' first parts by themselves,
    since a sum that waits for the one before takes three times as long as a product.
    """
    found = []
    for part in range(num_parts):
        for other in range(SPLITS - part):
            at, upper = part * PART_BYTES, other * PART_BYTES
            left, right = (((4, at),), ((5, at + TILE_BYTES),)) if other == 0 else ((), ())
            if tall:
                found += [Dot(0, 6, 4, left, ((6, upper),)), Dot(1, 6, 5, right)]
                found += [Dot(2, 7, 4, (), ((7, upper + TILE_BYTES),)), Dot(3, 7, 5)]
            else:
                total, rows = 2 * (part > 0), 6 + (part + other) % 2
                found += [Dot(total, rows, 4, left, ((rows, upper),)), Dot(total + 1, rows, 5, right)]
    return found


def emit_cuts(builder: Any, kind: int, step: Any) -> Iterator[None]:
    """Emit, a row of the tiles at a time, what `cut_step` does."""
    source, panel_bytes, target, ahead = cgutils.unpack_tuple(builder, step)
    units = 2 // VALUES[kind]
    for row in range(TILE_ROWS):
        for panel in range(2):
            first = builder.add(builder.mul(I64(panel), panel_bytes), I64(units * row * UNIT_BYTES))
            pair = []
            for unit in range(units):
                place = builder.add(first, I64(unit * UNIT_BYTES))
                emit_prefetch(builder, builder.add(ahead, place))
                pair += emit_widened(builder, kind, builder.add(source, place))
            at = panel * TILE_BYTES + row * UNIT_BYTES
            emit_cut(builder, pair, [builder.add(target, I64(part * PART_BYTES + at)) for part in range(PARTS[kind])])
            yield


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def cut_step(_typing: Any, kind: Any, step: Any) -> Any:
    """Cut a step of k of two panels and ask for another: `step` is where it is, bytes from one panel to the next, where
    it is cut to, and where the other is.
    """
    if not isinstance(kind, types.IntegerLiteral):
        return None

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        for _ in emit_cuts(builder, kind.literal_value, args[1]):
            pass
        return context.get_dummy_value()

    return types.void(kind, types.UniTuple(types.int64, 4)), emit


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def multiply_and_cut(_typing: Any, kind: Any, tall: Any, places: Any, step: Any) -> Any:
    """Add the products of a step of k of up to 32 rows (`tall` is 1; or 16: 0) with two panels that were cut;
    meanwhile cut another one. `places`: of x and of the cut weights; `step` is what `cut_step` takes.
    """
    if not all(isinstance(number, types.IntegerLiteral) for number in (kind, tall)):
        return None
    weights_kind, is_tall = kind.literal_value, bool(tall.literal_value)

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        x, weights = cgutils.unpack_tuple(builder, args[2])
        cuts, done = emit_cuts(builder, weights_kind, args[3]), 0
        products = dots(PARTS[weights_kind], is_tall)
        for number, dot in enumerate(products, start=1):
            for address, loads in ((weights, dot.weights), (x, dot.x)):
                for tile, offset in loads:
                    emit_load(builder, tile, builder.add(address, I64(offset)))
            emit_dot(builder, dot.total, dot.rows, dot.columns)
            while done * len(products) < 2 * TILE_ROWS * number:
                next(cuts)
                done += 1
        return context.get_dummy_value()

    return types.void(kind, tall, types.UniTuple(types.int64, 2), types.UniTuple(types.int64, 4)), emit


@njit(nogil=True)  # type: ignore[untyped-decorator]
def cut_chunk(kind: int, a: NDArray[np.int64], chunk: int) -> None:
    """One chunk of a product with weights that are to be cut, block by block of the rows."""
    literally(kind)
    row, panel, num_rows, last = part_of(a, chunk)
    room = np.empty(2 * CUT_BYTES + 2 * PART_BYTES + UNIT_BYTES, np.uint8)
    start = (room.ctypes.data + UNIT_BYTES - 1) // UNIT_BYTES * UNIT_BYTES
    first, way = (panel, 2) if direction(chunk) > 0 else (last - 2, -2)
    for m in range(0, num_rows, BLOCK_ROWS):
        rows = (row + m, min(BLOCK_ROWS, num_rows - m))
        multiply_block(kind, a, rows, (first, way, (last - panel) // 2), start)
    tiles.release()
    finish(a, (row, num_rows), (panel, last), a[SCALE])
    room[0] = 0  # alive until here


@njit(nogil=True)  # type: ignore[untyped-decorator]
def multiply_block(
    kind: int, a: NDArray[np.int64], rows: tuple[int, int], pairs: tuple[int, int, int], room: int
) -> None:
    """Write the products of a block of rows with some pairs of panels. `rows`: the first one, how many; `pairs`: the
    first one's panel, panels from one to the next, how many; `room`: two steps of cut weights and four tiles.
    """
    literally(kind)
    (row, num_rows), (panel, way, num_pairs) = rows, pairs
    step_bytes = TILE_DEPTH * LANES * WEIGHT_BYTES[kind]
    steps, stride, panel_bytes = a[DEPTH] // TILE_DEPTH, a[OUT_STRIDE], a[PANEL_BYTES]
    block = a[X] + row // BLOCK_ROWS * steps * BLOCK_STEP_BYTES
    tiles.configure(a[CONFIG] if num_rows == BLOCK_ROWS else a[TAIL_CONFIG])
    w = a[W] + panel * panel_bytes
    cut_step(kind, (w, panel_bytes, room, w + step_bytes))
    now, then = room, room + CUT_BYTES
    for pair in range(num_pairs):
        p = panel + way * pair
        w, out = a[W] + p * panel_bytes, a[OUT] + row * stride + p * UNIT_BYTES
        behind = w + way * panel_bytes
        following = behind if pair + 1 < num_pairs else w
        tiles.zero(0)
        tiles.zero(1)
        tiles.zero(2)
        tiles.zero(3)
        for k in range(steps):
            x = block + k * BLOCK_STEP_BYTES
            source = w + (k + 1) * step_bytes if k + 1 < steps else following
            ahead = w + (k + AHEAD) * step_bytes if k + AHEAD < steps else behind + (k + AHEAD - steps) * step_bytes
            if num_rows > TILE_ROWS:
                multiply_and_cut(kind, 1, (x, now), (source, panel_bytes, then, ahead))
            else:
                multiply_and_cut(kind, 0, (x, now), (source, panel_bytes, then, ahead))
            now, then = then, now
        if num_rows > TILE_ROWS:
            tiles.store(0, out, stride)
            tiles.store(1, out + UNIT_BYTES, stride)
            tiles.store(2, out + TILE_ROWS * stride, stride)
            tiles.store(3, out + TILE_ROWS * stride + UNIT_BYTES, stride)
        else:
            add_tiles(out, stride, num_rows, room + 2 * CUT_BYTES)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def add_tiles(out: int, stride: int, num_rows: int, room: int) -> None:
    """Write the sums of registers 0 and 2, and 1 and 3, as rows of 32 values; `room` is for four tiles."""
    tiles.store(0, room, 4 * UNIT_BYTES)
    tiles.store(1, room + UNIT_BYTES, 4 * UNIT_BYTES)
    tiles.store(2, room + 2 * UNIT_BYTES, 4 * UNIT_BYTES)
    tiles.store(3, room + 3 * UNIT_BYTES, 4 * UNIT_BYTES)
    for m in range(num_rows):
        row = carray(f32_at(out + m * stride), 2 * LANES)
        terms = carray(f32_at(room + m * 4 * UNIT_BYTES), (2, 2 * LANES))
        for n in range(2 * LANES):
            row[n] = terms[0, n] + terms[1, n]

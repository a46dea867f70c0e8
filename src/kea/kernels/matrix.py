"""A weight matrix in panels: how it is packed, quantized, read back, and multiplied with. Knows no models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kea.kernels import panels
from kea.kernels.arena import Arena
from kea.kernels.behind import CALL, Then
from kea.kernels.block_products import BLOCKS_PRODUCTS
from kea.kernels.byte_products import byte_config
from kea.kernels.digits import DIGIT_DEPTH, GROUP_ROWS, group_bytes
from kea.kernels.panels import BYTE, FEW_ROWS, FP16, FULL, HALF, ROWS_PRODUCTS, VALUES, WIDENS_FP16
from kea.kernels.parts import BLOCK_ROWS, BLOCK_STEP_BYTES, LANES
from kea.kernels.program import MAX_STREAM_CHUNKS, Kernel, Operation, Own, Stream
from kea.kernels.tile_products import TILES_PRODUCTS
from kea.kernels.tiles import TILE_DEPTH, TILE_ROWS, has_tiles, tile_config

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

PAIR_COLUMNS = 2 * LANES
CHUNK_ROWS = 256
MAX_FINE_ROWS = CHUNK_ROWS // 2  # up to so many, a chunk that is followed by a call has one group of columns
CHUNK_PAIRS = 8
CHUNKS_PER_THREAD = 3
"""How a product is cut: many rows into chunks of 256 columns, whose weights stay in a core's second cache; few into
as many chunks as keep a thread from waiting long for the last one."""

MAX_FIRST_BYTES = 256 << 10
"""What a thread may fetch of a product's weights before it begins: an eighth of the second cache of many cores."""

MIN_TILE_ROWS = (13, 5, 1, 5)
"""By the kind of the weights: rows of x from which on tiles are no slower than vector registers."""

DEPTH_UNIT = {FULL: TILE_DEPTH, HALF: TILE_DEPTH, BYTE: DIGIT_DEPTH, FP16: TILE_DEPTH}
"""What a matrix's depth is padded to: values of k in a row of a tile."""


def padded(size: int, unit: int = PAIR_COLUMNS) -> int:
    return -(-size // unit) * unit


@dataclass(frozen=True, slots=True)
class PanelMatrix:
    """W [N, K] as `panels` [padded N / 16, padded K / values, 16, values]; `kind` is FULL, HALF, BYTE or FP16.

    Those of FP16 are [padded N / 16, padded K / 2, 2, 16] instead.

    `scales` [padded N]: what a row of int8 weights is multiplied by; [0] for other kinds.
    """

    panels: NDArray[Any]
    kind: int
    num_columns: int
    depth: int
    scales: F32

    @property
    def padded_columns(self) -> int:
        return int(self.panels.shape[0]) * LANES

    @property
    def padded_depth(self) -> int:
        return int(self.panels.shape[1]) * VALUES[self.kind]

    def takes_tiles(self, num_rows: int) -> bool:
        """Whether this many rows of x are to be cut into tiles for this matrix, on this machine.

        With few rows vector registers keep up with memory, and read it faster than tiles do. Weights in fp32 have to be
        cut for tiles, too, and multiplied six times.
        """
        return has_tiles() and num_rows >= MIN_TILE_ROWS[self.kind]

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels that products with this matrix run through, whatever the number of rows (0: of no logits)."""
        return tuple({self.kernel(num_rows): None for num_rows in (0, 1, FEW_ROWS + 1, MIN_TILE_ROWS[self.kind])})

    def kernel(self, num_rows: int) -> Kernel:
        """The kernel that a product of so many rows runs through."""
        if self.takes_tiles(num_rows):
            return TILES_PRODUCTS[self.kind]
        return (ROWS_PRODUCTS if num_rows <= FEW_ROWS else BLOCKS_PRODUCTS)[self.kind]

    def rows(self, indices: I64) -> F32:
        """Return some rows of W [len(indices), K] in fp32."""
        if self.kind == FP16:
            lanes = self.panels[indices // LANES, :, :, indices % LANES]
            return lanes.reshape(len(indices), -1)[:, : self.depth].astype(np.float32)
        found = self.panels[indices // LANES, :, indices % LANES].reshape(len(indices), -1)[:, : self.depth]
        if self.kind == HALF:
            return (found.astype(np.uint32) << 16).view(np.float32)
        wide = found.astype(np.float32)
        return wide * self.scales[indices, None] if self.kind == BYTE else wide


def pack_matrix(weight: F32, *, quantize: bool = False, arena: Arena | None = None) -> PanelMatrix:
    """Pack W [N, K] of fp32: as bfloat16 or fp16 where that loses nothing, as int8 with a row's scale where `quantize`.

    `arena`: where the panels are to lie; None: in one of their own.
    """
    num_columns, depth = weight.shape
    scales = np.empty(0, np.float32)
    kind, values = FULL, weight
    if quantize:
        kind = BYTE
        largest = np.maximum(np.abs(weight).max(axis=1), np.float32(1e-30))
        scales = np.zeros(padded(num_columns), np.float32)
        scales[:num_columns] = largest / np.float32(127.0)
        values = np.rint(weight / scales[:num_columns, None]).astype(np.int8)
    elif not np.any(weight.view(np.uint32)[:64] & 0xFFFF) and not np.any(weight.view(np.uint32) & 0xFFFF):
        kind, values = HALF, (weight.view(np.uint32) >> 16).astype(np.uint16)
    elif WIDENS_FP16 and _is_fp16(weight[:64]) and _is_fp16(weight):
        kind, values = FP16, weight.astype(np.float16)
    return PanelMatrix(_panels(values, kind, arena or Arena()), kind, num_columns, depth, scales)


def _is_fp16(weight: F32) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(weight.astype(np.float16), weight))


def pack_halves(parts: Sequence[NDArray[np.uint16]], arena: Arena) -> PanelMatrix:
    """Pack a matrix of bfloat16 values, as their bits, that is given as parts [N, K], one below the other."""
    return _pack_parts(parts, HALF, arena)


def pack_fp16(parts: Sequence[NDArray[np.float16]], arena: Arena) -> PanelMatrix:
    """Pack a matrix of fp16 values that is given as parts [N, K], one below the other: in fp32 where the processor does
    not widen it, as bfloat16 where that loses nothing, too.
    """
    if WIDENS_FP16 and any(np.any(part[:64].view(np.uint16) & 7) for part in parts):
        return _pack_parts(parts, FP16, arena)
    return pack_matrix(np.concatenate(parts).astype(np.float32), arena=arena)


def _pack_parts(parts: Sequence[NDArray[Any]], kind: int, arena: Arena) -> PanelMatrix:
    num_columns, depth = sum(len(part) for part in parts), parts[0].shape[1]
    whole = parts[0] if len(parts) == 1 else Arena().zeros((num_columns, depth), parts[0].dtype)
    if len(parts) > 1:
        np.concatenate(parts, out=whole)
    return PanelMatrix(_panels(whole, kind, arena), kind, num_columns, depth, np.empty(0, np.float32))


def _panels(values: NDArray[Any], kind: int, arena: Arena) -> NDArray[Any]:
    """Lay values [N, K] out in panels, four bytes of a row at a time: as one number, which is thrice as fast."""
    if kind == FP16:
        return _fp16_panels(values, arena)
    unit = VALUES[kind]
    num_columns, depth = values.shape
    num_units = padded(depth, DEPTH_UNIT[kind]) // unit
    packed = arena.zeros((padded(num_columns) // LANES, num_units, LANES, unit), values.dtype)
    if depth % unit:
        values = np.pad(values, ((0, 0), (0, -depth % unit)))
    words = np.ascontiguousarray(values).view(np.uint32)  # [N, units]
    target = packed.view(np.uint32)[..., 0]  # [padded N / 16, padded units, 16]
    whole, units = num_columns // LANES, words.shape[1]
    target[:whole, :units] = words[: whole * LANES].reshape(whole, LANES, units).transpose(0, 2, 1)
    if num_columns % LANES:
        target[whole, :units, : num_columns % LANES] = words[whole * LANES :].T
    return packed


def _fp16_panels(values: NDArray[Any], arena: Arena) -> NDArray[Any]:
    """Lay fp16 [N, K] out, a value at a time: 2.7 ms for 4,096 x 1,536, where bfloat16 takes 1.6."""
    num_columns, depth = values.shape
    packed = arena.zeros((padded(num_columns) // LANES, padded(depth, TILE_DEPTH) // 2, 2, LANES), values.dtype)
    target = packed.reshape(len(packed), -1, LANES)  # [padded N / 16, padded K, 16]
    whole = num_columns // LANES
    target[:whole, :depth] = values[: whole * LANES].reshape(whole, LANES, depth).transpose(0, 2, 1)
    if num_columns % LANES:
        target[whole, :depth, : num_columns % LANES] = values[whole * LANES :].T
    return packed


def tiles_bytes(num_rows: int, depth: int, kind: int) -> int:
    """Return the bytes that rows of x take when they are cut into tiles for a kind of weights."""
    if kind == BYTE:
        return -(-num_rows // GROUP_ROWS) * group_bytes(depth)
    return -(-num_rows // BLOCK_ROWS) * (padded(depth, TILE_DEPTH) // TILE_DEPTH) * BLOCK_STEP_BYTES


def record_product(
    matrix: PanelMatrix,
    bias: F32,
    x: NDArray[Any],
    out: F32,
    num_threads: int,
    *,
    then: Then | None = None,
    own: Own | None = None,
) -> tuple[Operation, list[object]]:
    """Return the operation out = x W^T + bias, and what must live as long as it.

    x [M, K padded to 32] fp32, or its tiles (uint8) if the matrix takes them; out [M, padded N]; `bias` [padded N] or
    [0]. `then`: what becomes of the sums at once. `own`: what each thread makes its x with; then x [threads, ...].
    """
    num_rows = len(out)
    takes_tiles = matrix.takes_tiles(num_rows)
    pairs = matrix.padded_columns // PAIR_COLUMNS
    num_panels = 2 * pairs
    chunk_rows, chunk_panels = CHUNK_ROWS, 2 * max(1, pairs // (CHUNKS_PER_THREAD * num_threads))
    if num_rows > CHUNK_ROWS // 2:
        chunk_panels = 2 * -(-pairs // max(1, pairs // CHUNK_PAIRS))
    if then is not None:
        step = math.lcm(2, then.columns // LANES)
        # One group a chunk: larger ones divide fifteen heads unevenly between threads (docs/performance.md).
        is_fine = then.work == CALL and num_rows <= MAX_FINE_ROWS
        chunk_panels = step if is_fine else max(1, chunk_panels // step) * step
    full, tail = tile_config((TILE_ROWS,) * 8), _tail_config(num_rows % BLOCK_ROWS)
    if matrix.kind == BYTE:
        full = byte_config(num_rows)
    arguments = np.zeros(panels.NUM_ARGUMENTS, np.int64)
    arguments[panels.X], arguments[panels.X_STRIDE] = x.ctypes.data, 0 if takes_tiles else x.strides[-2]
    arguments[panels.W], arguments[panels.PANEL_BYTES] = matrix.panels.ctypes.data, matrix.panels.strides[0]
    arguments[panels.DEPTH] = matrix.padded_depth if takes_tiles else padded(matrix.depth)
    arguments[panels.OUT], arguments[panels.OUT_STRIDE] = out.ctypes.data, out.strides[0]
    arguments[panels.NUM_ROWS], arguments[panels.NUM_PANELS] = num_rows, num_panels
    arguments[panels.CHUNK_ROWS], arguments[panels.CHUNK_PANELS] = chunk_rows, chunk_panels
    arguments[panels.SCALE] = matrix.scales.ctypes.data if matrix.scales.size else 0
    arguments[panels.BIAS] = bias.ctypes.data if bias.size else 0
    arguments[panels.CONFIG], arguments[panels.TAIL_CONFIG] = full.ctypes.data, tail.ctypes.data
    num_chunks = -(-num_rows // chunk_rows) * -(-num_panels // chunk_panels)
    stream = None
    if num_rows <= chunk_rows and num_chunks <= MAX_STREAM_CHUNKS and panels.streams(matrix.kind, num_rows):
        start, panel_bytes = matrix.panels.ctypes.data, matrix.panels.strides[0]
        stream = _stream(start, num_panels * panel_bytes, chunk_panels * panel_bytes, num_threads)
    if then is not None:
        arguments[panels.THEN], arguments[panels.THEN_ARGUMENTS] = then.work, then.arguments.ctypes.data
    if own is not None:
        arguments = np.tile(arguments, (num_threads, 1))
        arguments[:, panels.X] = [part.ctypes.data for part in x]
    operation = Operation(matrix.kernel(num_rows), arguments, num_chunks, stream=stream, own=own)
    return operation, [matrix, bias, x, out, full, tail, then, own]


def _stream(start: int, num_bytes: int, chunk_bytes: int, num_threads: int) -> Stream:
    """What a product reads. Two threads may fetch beyond their first chunk: no other one begins there."""
    first = min(num_bytes // 2, MAX_FIRST_BYTES)
    return Stream(start, start + num_bytes, chunk_bytes, first if num_threads <= 2 else min(first, chunk_bytes))


def _tail_config(rest: int) -> NDArray[np.uint8]:
    """The registers' rows for the last block: sums in 0 to 3, weights in 4 and 5, x in 6 and 7, or in 2, 3 and 6."""
    upper, lower = min(rest, TILE_ROWS), max(0, rest - TILE_ROWS)
    if lower:
        return tile_config((upper, upper, lower, lower, TILE_ROWS, TILE_ROWS, upper, lower))
    return tile_config((upper, upper, upper, upper, TILE_ROWS, TILE_ROWS, upper, upper))

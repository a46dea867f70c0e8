"""What is done behind a product, chunk by chunk, equals the same done with the whole of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numba import carray
from numpy.typing import NDArray

from kea.kernels import behind
from kea.kernels import matrix as matrices
from kea.kernels.behind import Then, part_of_word
from kea.kernels.gates import GATES
from kea.kernels.machine import f32_at, i64_at
from kea.kernels.matrix import PanelMatrix, pack_matrix, padded, record_product, tiles_bytes
from kea.kernels.panels import BYTE, FULL, HALF
from kea.kernels.parts import BLOCK_ROWS, SPLITS
from kea.kernels.program import TEAM, Kernel, Own, Program, aligned_zeros
from kea.kernels.tiles import TILE_DEPTH, has_tiles
from kea.models.lean import steps

F32 = NDArray[np.float32]
NONE: F32 = np.empty(0, np.float32)
ROWS = [1, 3, 8, 16, 32, 33, 70, 300]


@pytest.fixture(params=["tiles", "vectors"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "vectors":
        monkeypatch.setattr(matrices, "has_tiles", lambda: False)
    elif not has_tiles():
        pytest.skip("this processor has no tile unit")
    return str(request.param)


def weights(shape: tuple[int, int], kind: int) -> PanelMatrix:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if kind == HALF:
        values = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return pack_matrix(values, quantize=kind == BYTE)


def multiply(matrix: PanelMatrix, x: F32, then: Then | None, *, num_threads: int = 2, out: F32 | None = None) -> F32:
    """Run a product whose threads cut x for themselves, where it takes tiles."""
    rows = aligned_zeros((len(x), padded(matrix.depth)), np.float32)
    rows[:, : matrix.depth] = x
    if out is None:
        out = aligned_zeros((len(x), matrix.padded_columns), np.float32)
    taken, own = rows, None
    if matrix.takes_tiles(len(x)):
        size = padded(tiles_bytes(len(x), matrix.depth, matrix.kind), 64)
        taken = aligned_zeros((num_threads, size), np.uint8)
        arguments = [rows.ctypes.data, rows.shape[1], len(rows), taken.ctypes.data, matrix.kind, size]
        own = Own(steps.CUT_ALONE, np.array(arguments, np.int64))
    operation, holds = record_product(matrix, NONE, taken, out, num_threads, then=then, own=own)
    TEAM.run(Program([operation], holds), num_threads)
    return out


def adding(to: F32, width: int, factor: float) -> Then:
    a = np.zeros(behind.NUM_ADD, np.int64)
    a[behind.TO], a[behind.TO_STRIDE], a[behind.TO_WIDTH] = to.ctypes.data, to.strides[0], width
    a[behind.FACTOR] = np.float64(factor).view(np.int64)
    return Then(behind.ADD, a)


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("kind", [FULL, HALF, BYTE])
def test_rows_get_a_product_added_once_and_nothing_beyond_their_width(num_rows: int, kind: int, path: str) -> None:
    matrix = weights((117, 70), kind)
    x = np.random.default_rng(1).standard_normal((num_rows, 70)).astype(np.float32)
    to = np.random.default_rng(2).standard_normal((num_rows, 140)).astype(np.float32)
    before = to.copy()
    out = multiply(matrix, x, adding(to, 117, 0.5))
    assert np.allclose(to[:, :117], before[:, :117] + np.float32(0.5) * out[:, :117], rtol=1e-6, atol=1e-6)
    assert np.array_equal(to[:, 117:], before[:, 117:])
    assert np.allclose(out[:, :117], multiply(matrix, x, None)[:, :117], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("kind", [FULL, HALF, BYTE])
@pytest.mark.parametrize("cuts", [False, True])
def test_gates_meet_what_they_gate(num_rows: int, kind: int, cuts: bool, path: str) -> None:
    size = 9 * GATES
    matrix = weights((2 * size, 64), kind)
    x = np.random.default_rng(1).standard_normal((num_rows, 64)).astype(np.float32)
    both = multiply(matrix, x, None).reshape(num_rows, -1, 2, GATES)
    expected = (torch.nn.functional.silu(torch.from_numpy(both[:, :, 0])).numpy() * both[:, :, 1]).reshape(num_rows, -1)
    gated = aligned_zeros((num_rows, size), np.float32)
    tiles = aligned_zeros((tiles_bytes(num_rows, size, HALF),), np.uint8)
    a = np.zeros(behind.NUM_GATE, np.int64)
    a[behind.GATED], a[behind.GATED_STRIDE] = gated.ctypes.data, gated.strides[0]
    if cuts:
        a[behind.TILES], a[behind.NUM_STEPS] = tiles.ctypes.data, size // TILE_DEPTH
    multiply(matrix, x, Then(behind.GATE, a, 2 * GATES))
    if cuts:
        halves = tiles.view(np.uint16).reshape(-1, size // TILE_DEPTH, SPLITS, BLOCK_ROWS, TILE_DEPTH)
        parts = (halves.astype(np.uint32) << 16).view(np.float32).transpose(2, 0, 3, 1, 4)
        gated = ((parts[0] + parts[1]) + parts[2]).reshape(-1, size)[:num_rows]
    assert np.allclose(gated, expected, rtol=1e-5, atol=1e-5)


def sum_group(address: int, part: int) -> None:
    """Add what a group of columns sums up to, and one for the call, to sums [rows, groups, 2]."""
    a = carray(i64_at(address), 5)
    row, num_rows, group = part_of_word(part)
    for m in range(row, row + num_rows):
        found = carray(f32_at(a[0] + m * a[1] + 4 * group * a[2]), a[2])
        sums = carray(f32_at(a[3] + 8 * (m * a[4] + group)), 2)
        for value in found:
            sums[0] += value
        sums[1] += np.float32(1.0)


SUM_GROUP = Kernel(sum_group)


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("kind", [FULL, HALF, BYTE])
@pytest.mark.parametrize("size", [32, 96])
def test_a_kernel_is_called_once_for_each_group_when_it_is_complete(
    num_rows: int, kind: int, size: int, path: str
) -> None:
    num_groups = 13
    matrix = weights((num_groups * size, 64), kind)
    x = np.random.default_rng(1).standard_normal((num_rows, 64)).astype(np.float32)
    expected = multiply(matrix, x, None).reshape(num_rows, num_groups, size).sum(2)
    out = aligned_zeros((num_rows, matrix.padded_columns), np.float32)
    sums = np.zeros((num_rows, num_groups, 2), np.float32)
    own = np.array([out.ctypes.data, out.strides[0], size, sums.ctypes.data, num_groups], np.int64)
    call = np.array([SUM_GROUP.address, own.ctypes.data, size], np.int64)
    multiply(matrix, x, Then(behind.CALL, call, size), out=out)
    assert np.allclose(sums[:, :, 0], expected, rtol=1e-4, atol=1e-4)
    assert np.all(sums[:, :, 1] == 1)

"""Gated activations equal torch's, also where an exponential would overflow; as fp32 and as parts of tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numba import njit
from numpy.typing import NDArray

from kea.kernels.gates import GATES, gate_step
from kea.kernels.parts import BLOCK_STEP_BYTES, PART_BYTES, SPLITS, UNIT_BYTES
from kea.kernels.program import aligned_zeros

F32 = NDArray[np.float32]


@njit  # type: ignore[untyped-decorator]
def run(cuts: bool, tanh: bool, places: tuple[int, int, int, int], num_rows: int) -> None:
    if cuts:
        gate_step(1, tanh, places, num_rows)
    else:
        gate_step(0, tanh, places, num_rows)


def gated(both: F32, tanh: bool, *, cuts: bool = False) -> F32:
    """Run the gates of rows [M, 64]: as fp32, or as the sum of the parts in their tiles."""
    num_rows = len(both)
    if not cuts:
        out = aligned_zeros((num_rows + 1, GATES), np.float32)
        out[:] = 7.0
        run(False, tanh, (both.ctypes.data, out.ctypes.data, both.strides[0], out.strides[0]), num_rows)
        assert (out[-1] == 7.0).all()
        return out[:-1]
    tiles = aligned_zeros((BLOCK_STEP_BYTES,), np.uint8)
    run(True, tanh, (both.ctypes.data, tiles.ctypes.data, both.strides[0], UNIT_BYTES), num_rows)
    halves = tiles.view(np.uint16).reshape(SPLITS, PART_BYTES // UNIT_BYTES, GATES)[:, :num_rows]
    parts = (halves.astype(np.uint32) << 16).view(np.float32)
    return (parts[0] + parts[1]) + parts[2]  # type: ignore[no-any-return]


@pytest.mark.parametrize("cuts", [False, True])
@pytest.mark.parametrize("tanh", [False, True])
def test_gates_equal_torch(tanh: bool, cuts: bool) -> None:
    rng = np.random.default_rng(0)
    both = rng.standard_normal((9, 2 * GATES)).astype(np.float32)
    both[:4, :GATES] *= 5
    both[4:, :GATES] = np.linspace(-300, 300, 5 * GATES).reshape(5, GATES)
    act = torch.nn.GELU(approximate="tanh") if tanh else torch.nn.SiLU()
    expected = act(torch.from_numpy(both[:, :GATES]).double()) * torch.from_numpy(both[:, GATES:]).double()
    rtol = 1e-6 + 1e-7 * np.abs(both[:, :GATES])  # an exponent in fp32 errs by a part of itself
    error = np.abs(gated(both, tanh, cuts=cuts) - expected.numpy())
    assert (error <= rtol * np.abs(expected.numpy()) + (1e-6 if tanh else 1e-30)).all()


def test_parts_are_those_of_what_is_written_in_fp32() -> None:
    both = np.random.default_rng(1).standard_normal((32, 2 * GATES)).astype(np.float32)
    assert np.array_equal(gated(both, False, cuts=True), gated(both, False))


def test_nan_stays_nan() -> None:
    both = np.ones((1, 2 * GATES), np.float32)
    both[0, 3] = np.nan
    assert np.isnan(gated(both, False)).tolist() == [[index == 3 for index in range(GATES)]]

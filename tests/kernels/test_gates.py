"""Gated activations equal torch's, also where an exponential would overflow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numba import njit

from kea.kernels.gates import gate_vectors
from kea.kernels.vectors import WIDTH


@njit  # type: ignore[untyped-decorator]
def run(gate: int, up: int, out: int, num_vectors: int, tanh: bool) -> None:
    gate_vectors(gate, up, out, num_vectors, tanh)


@pytest.mark.parametrize("tanh", [False, True])
def test_gates_equal_torch(tanh: bool) -> None:
    rng = np.random.default_rng(0)
    gate = np.concatenate([rng.standard_normal(WIDTH * 4) * 5, np.linspace(-300, 300, WIDTH * 4)]).astype(np.float32)
    up = rng.standard_normal(len(gate)).astype(np.float32)
    out = np.full(len(gate) + 1, 7.0, np.float32)
    run(gate.ctypes.data, up.ctypes.data, out.ctypes.data, len(gate) // WIDTH, tanh)
    act = torch.nn.GELU(approximate="tanh") if tanh else torch.nn.SiLU()
    expected = act(torch.from_numpy(gate).double()) * torch.from_numpy(up).double()
    assert np.allclose(out[:-1], expected.numpy(), rtol=2e-6, atol=1e-30 if not tanh else 1e-6)
    assert out[-1] == 7.0


def test_nan_stays_nan() -> None:
    gate, up, out = (np.full(WIDTH, value, np.float32) for value in (np.nan, 1.0, 0.0))
    run(gate.ctypes.data, up.ctypes.data, out.ctypes.data, 1, False)
    assert np.isnan(out).all()

"""The CPU's kernel that looks for numbers that are not finite. Knows no requests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kea.kernels.jit import compiled

F32 = NDArray[np.float32]


@compiled()
def are_finite(keys: F32, values: F32, slots: NDArray[np.int64]) -> bool:
    """Say whether the rows `slots` of `keys` [S, K] and `values` [S, V] hold finite numbers alone."""
    zero = np.float32(0.0)  # and stays so: an infinity times 0 is no number
    for slot in slots:
        for i in range(keys.shape[1]):
            zero += keys[slot, i] * np.float32(0.0)
        for i in range(values.shape[1]):
            zero += values[slot, i] * np.float32(0.0)
    return bool(zero == np.float32(0.0))

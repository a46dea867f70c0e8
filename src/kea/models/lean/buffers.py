"""The buffers of a step: named, aligned, zero at first, growing. Knows no models."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kea.kernels.program import aligned_zeros


class Buffers:
    """Arrays by name that every layer and step uses again. `age` rises whenever one has moved to make room.

    Padding is zero and stays so, as long as nobody writes it: an array of a name always has the same row length.
    """

    def __init__(self, min_rows: int) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}
        self._min_rows = min_rows
        self.age = 0

    def get(self, name: str, num_rows: int, *row: int, dtype: Any = np.float32) -> NDArray[Any]:
        """Return the first `num_rows` rows, each of shape `row`."""
        array = self._arrays.get(name)
        if array is None or len(array) < num_rows:
            array = self._arrays[name] = aligned_zeros((max(num_rows, self._min_rows), *row), dtype)
            self.age += 1
        return array[:num_rows]

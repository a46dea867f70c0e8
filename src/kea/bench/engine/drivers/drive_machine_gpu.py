"""Measures what bounds every system on a GPU: reading its memory, and matrix products at prefill shapes in bfloat16.

Runs in Kea's own python as one more system of the rotation. On a CPU, which tests use, it measures by the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

_REPEATS = 10
_MOST_BYTES = 2 << 30  # far more than any cache


class Driver:
    """The arrays that are read and multiplied. Ends with its process."""

    def __init__(self) -> None:
        self._device = "cpu"
        self._arrays: dict[str, torch.Tensor] = {}
        self._matrices: list[tuple[int, int]] = []

    def load(self, device: str, sizes: dict[str, int], matrices: list[list[int]], **_: Any) -> dict[str, Any]:
        """Make an array for each size in bytes, or of 2 GiB; `matrices` are the products of a layer as (N, K)."""
        self._device = device
        self._arrays = {
            name: torch.ones(min(size, _MOST_BYTES) // 4, dtype=torch.float32, device=device)
            for name, size in sizes.items()
        }
        self._matrices = [(n, k) for n, k in matrices]
        name = torch.cuda.get_device_name(device) if self._is_gpu else "no GPU"
        return {"version": f"torch {torch.__version__}, CUDA {torch.version.cuda}", "note": name}

    def bounds(self, rows: Sequence[int]) -> dict[str, Any]:
        """Return the best rates of a few repetitions: bytes/s by array (of summing it, or of copying it, read and
        written), operations/s by rows of x.
        """
        with torch.inference_mode():
            read = {name: self._read_rate(array) for name, array in self._arrays.items()}
            return {"read": read, "product": {str(count): self._product_rate(count) for count in rows}}

    def _read_rate(self, array: torch.Tensor) -> float:
        target = torch.empty_like(array)
        num_bytes = array.numel() * array.itemsize
        copied = 2 * num_bytes / self._best(lambda: target.copy_(array))
        return max(copied, num_bytes / self._best(array.sum))

    def _product_rate(self, num_rows: int) -> float:
        def noise(rows: int, columns: int) -> torch.Tensor:
            return torch.randn(rows, columns, dtype=torch.bfloat16, device=self._device)

        pairs = [(noise(num_rows, k), noise(n, k)) for n, k in self._matrices]
        flops = sum(2.0 * num_rows * n * k for n, k in self._matrices)
        return flops / self._best(lambda: [x @ w.T for x, w in pairs])

    def _best(self, work: Callable[[], Any]) -> float:
        """Return the shortest time of a few repetitions, on a GPU between events around it."""
        work()
        times = []
        for _ in range(_REPEATS):
            if not self._is_gpu:
                started = time.perf_counter()
                work()
                times.append(time.perf_counter() - started)
                continue
            event: Any = torch.cuda.Event
            begin, end = event(enable_timing=True), event(enable_timing=True)
            begin.record()
            work()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        return min(times)

    @property
    def _is_gpu(self) -> bool:
        return self._device.startswith("cuda")


def create_driver() -> Driver:
    return Driver()

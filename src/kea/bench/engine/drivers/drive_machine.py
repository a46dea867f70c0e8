"""Measures what bounds every system: reading memory at the size of the weights, and matrix products at prefill shapes.

Runs in Kea's own python as one more system of the rotation, so that its figures are of the same minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

_CPUINFO = Path("/proc/cpuinfo")
_UNITS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8", "avx512_fp16")
_REPEATS = 5


class Driver:
    """The arrays that are read and multiplied. Ends with its process."""

    def __init__(self) -> None:
        self._threads = 1
        self._arrays: dict[str, Any] = {}
        self._matrices: list[tuple[int, int]] = []
        self._pool = ThreadPoolExecutor(1)

    def load(self, threads: int, sizes: dict[str, int], matrices: list[list[int]], **_: Any) -> dict[str, Any]:
        """Make an array of each size in bytes; `matrices` are the products of a layer as (N, K)."""
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        torch.set_num_threads(threads)
        self._arrays = {name: np.ones(size // 8, np.int64) for name, size in sizes.items()}
        self._matrices = [(n, k) for n, k in matrices]
        for array in self._arrays.values():
            self._read(array)
        return {"version": f"torch {torch.__version__}, numba {numba.__version__}", "note": read_units(_CPUINFO)}

    def bounds(self, rows: Sequence[int]) -> dict[str, Any]:
        """Return the best rates of a few repetitions: bytes/s by array, operations/s by rows of x and type."""
        read = {name: array.nbytes / _best(self._reader(array)) for name, array in self._arrays.items()}
        product = {str(num_rows): self._product_rate(num_rows, torch.float32) for num_rows in rows}
        return {"read": read, "product": product}

    def bf16_peak(self, rows: int) -> dict[str, Any]:
        """Return the operations/s of products in bfloat16, a sum of which can stand for one in fp32."""
        return {"bf16": self._product_rate(rows, torch.bfloat16)}

    def _reader(self, array: Any) -> Callable[[], None]:
        return lambda: self._read(array)

    def _read(self, array: Any) -> None:
        parts = np.array_split(array, self._threads)
        totals = list(self._pool.map(_sum, parts))
        if sum(totals) != len(array):
            raise RuntimeError("an array was not read whole")

    def _product_rate(self, num_rows: int, dtype: torch.dtype) -> float:
        """Return the rate of a layer's products, the better of torch's own threads and one torch thread per part."""
        with torch.inference_mode():
            pairs = [(torch.ones(num_rows, k, dtype=dtype), torch.ones(n, k, dtype=dtype)) for n, k in self._matrices]
            flops = sum(2.0 * num_rows * n * k for n, k in self._matrices)
            together = _best(lambda: [x @ w.T for x, w in pairs])
            torch.set_num_threads(1)
            try:
                apart = _best(lambda: [self._multiply(x, w) for x, w in pairs])
            finally:
                torch.set_num_threads(self._threads)
        return flops / min(together, apart)

    def _multiply(self, x: torch.Tensor, w: torch.Tensor) -> list[torch.Tensor]:
        return list(self._pool.map(lambda part: x @ part.T, w.chunk(self._threads)))


@numba.njit(nogil=True)  # type: ignore[untyped-decorator, unused-ignore]
def _sum(values: Any) -> int:
    total = 0
    for index in range(values.size):
        total += values[index]
    return total


def _best(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def read_units(cpuinfo: Path) -> str:
    """Return which vector and matrix units the processor says it has."""
    flags: set[str] = set()
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    return "units " + (" ".join(unit for unit in _UNITS if unit in flags) or "unknown")


def create_driver() -> Driver:
    return Driver()

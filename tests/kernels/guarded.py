"""Arrays with nothing before and behind them: who reads or writes beyond one ends the process.

For processes of their own (`tests/kernels/bounds.py`): the fault of a kernel cannot be caught.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

PROT_NONE = 0


def guarded_zeros(shape: tuple[int, ...], dtype: Any, *, at_end: bool = True) -> NDArray[Any]:
    """Return zeros that end where a page ends, or begin where one does; the pages before and behind are nobody's."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size == 0:
        return np.zeros(shape, dtype)
    num_bytes = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, num_bytes + 2 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    raw = np.frombuffer(memory, np.uint8)
    for start in (0, mmap.PAGESIZE + num_bytes):
        protect(raw.ctypes.data + start)
    first = mmap.PAGESIZE + (num_bytes - size if at_end else 0)
    array: NDArray[Any] = raw[first : first + size].view(dtype).reshape(shape)
    return array


def protect(address: int) -> None:
    if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, PROT_NONE) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


def guarded(values: NDArray[Any], *, at_end: bool = True) -> NDArray[Any]:
    """Return a copy of an array that is guarded."""
    array = guarded_zeros(values.shape, values.dtype, at_end=at_end)
    array[...] = values
    return array


def guarded_tensor(values: torch.Tensor, *, at_end: bool = True) -> torch.Tensor:
    return torch.from_numpy(guarded(values.contiguous().numpy(), at_end=at_end))


class GuardedArena:
    """In place of an `Arena`: each array by itself."""

    def __init__(self, *, at_end: bool = True) -> None:
        self._at_end = at_end

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        return guarded_zeros(shape, dtype, at_end=self._at_end)

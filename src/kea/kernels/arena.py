"""Zeroed arrays in large pages of memory, for what a step reads from its begin to its end. Knows no models.

A page of 2 MB takes one entry of the processor's table of addresses where small ones take 512, and what fetches ahead
stops at a page's end. numpy asks for large pages for arrays of several MB only, and in vain where it gets memory back
that was in small ones.
"""

from __future__ import annotations

import contextlib
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE_BYTES = 2 << 20
BLOCK_BYTES = 64 << 20
LINE_BYTES = 64


class Arena:
    """Hands out arrays, one behind the other, each from the begin of a cache line.

    Blocks are taken from the system as they are needed, and given back with the last array that lies in them. Where
    the system has no large pages they lie in small ones. Not for several threads at once.
    """

    def __init__(self) -> None:
        self._block = np.empty(0, np.uint8)
        self._taken = 0

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self._taken + size > self._block.size:
            self._block, self._taken = _block(max(size, BLOCK_BYTES)), 0
        array: NDArray[Any] = self._block[self._taken : self._taken + size].view(dtype).reshape(shape)
        self._taken += -(-size // LINE_BYTES) * LINE_BYTES
        return array


def _block(size: int) -> NDArray[np.uint8]:
    """Return zeros that begin at a large page. What is not touched takes no memory."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        raw = np.zeros(size + LINE_BYTES, np.uint8)
        start = -raw.ctypes.data % LINE_BYTES
        return raw[start : start + size]
    memory = mmap.mmap(-1, size + PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system that was built without them: the same in small pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(memory, np.uint8)
    start = -raw.ctypes.data % PAGE_BYTES
    return raw[start : start + size]

"""The arena: arrays of zeros that do not touch each other, in large pages, given back."""

from __future__ import annotations

import gc
import mmap
import re
import weakref
from pathlib import Path

import numpy as np
import pytest

from kea.kernels import arena as arenas
from kea.kernels.arena import LINE_BYTES, PAGE_BYTES, Arena


def test_arrays_are_zero_aligned_and_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arenas, "BLOCK_BYTES", 4096)
    arena = Arena()
    arrays = [arena.zeros((size, 3), np.uint16) for size in (1, 5, 0, 300, 700, 5000, 2)]
    for value, array in enumerate(arrays, start=1):
        assert array.ctypes.data % LINE_BYTES == 0
        assert not array.any()
        array[:] = value
    assert all((array == value).all() for value, array in enumerate(arrays, start=1))


def test_memory_is_given_back_with_the_last_array() -> None:
    arena = Arena()
    first, last = arena.zeros((8,), np.float32), arena.zeros((8,), np.float32)
    memory: object = first
    while isinstance(memory, np.ndarray):
        memory = memory.base
    assert isinstance(memory, memoryview)
    alive = weakref.ref(memory.obj)
    del arena, first, memory
    gc.collect()
    assert alive() is not None
    del last
    gc.collect()
    assert alive() is None


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no large pages")
def test_the_system_is_asked_for_large_pages() -> None:
    array = Arena().zeros((PAGE_BYTES,), np.uint8)
    assert array.ctypes.data % PAGE_BYTES == 0
    text = Path("/proc/self/smaps").read_text()
    for low, high, fields in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) (.*?VmFlags:[^\n]*)", text, re.M | re.S):
        if int(low, 16) <= array.ctypes.data < int(high, 16):
            assert "hg" in fields.split("VmFlags:")[1].split()
            return
    pytest.fail("the array is in no mapping")

"""Compiling kernels: one thread budget with torch, and installs whose files cannot be written."""

from __future__ import annotations

import logging

import numba
import pytest
import torch
from numba.core.caching import FunctionCache

from kea.attention.jit import compiled, running_kernels


@pytest.mark.parametrize("num_threads", [1, 2])
def test_kernels_run_on_as_many_threads_as_torch_was_given(num_threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        with running_kernels() as granted:
            assert granted == min(num_threads, numba.config.NUMBA_NUM_THREADS)
            assert numba.get_num_threads() == granted
            assert torch.get_num_threads() == 1
            with running_kernels() as nested:
                assert nested == granted
        assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)


def test_where_nothing_can_be_kept_on_disk_kernels_still_compile_and_say_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_self: object, _function: object) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(FunctionCache, "__init__", refuse)

    def double(x: int) -> int:
        return 2 * x

    with caplog.at_level(logging.WARNING):
        kernel = compiled()(double)
    assert kernel(21) == 42
    assert "double cannot be kept on disk: cannot cache function" in caplog.text

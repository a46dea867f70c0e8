"""Compiling kernels, also in installs whose files cannot be written."""

from __future__ import annotations

import logging

import pytest
from numba.core.caching import FunctionCache

from kea.kernels.jit import compiled


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

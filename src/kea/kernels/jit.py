"""How numba compiles our kernels: without the interpreter's lock, kept on disk. Knows no kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

from kea.kernels.caching import keep_on_disk
from kea.kernels.program import FAST_SUMS

F = TypeVar("F", bound=Callable[..., Any])


def inner(function: F) -> F:
    """Compile a function that kernels call, as a part of them."""
    part: F = numba.njit(nogil=True, fastmath=set(FAST_SUMS))(function)
    return part


def compiled(*, exact: bool = False) -> Callable[[F], F]:
    """Compile a kernel on its first call, for the types of that call, without the interpreter's lock.

    The machine code is kept on disk (`kea.kernels.caching`). `exact`: no sum is reordered.
    """

    def decorate(function: F) -> F:
        options = {"nogil": True, "fastmath": False if exact else set(FAST_SUMS)}
        kernel: F = numba.njit(**options)(function)
        keep_on_disk(kernel)
        return kernel

    return decorate

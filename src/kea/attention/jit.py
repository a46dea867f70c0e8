"""How numba compiles and runs our CPU kernels: what is cached on disk, which threads run them.

Owns the one lock under which kernels run. Knows no attention and no models; their kernels are decorated here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numba
import torch

from kea.kernels.caching import keep_on_disk
from kea.kernels.program import FAST_SUMS

F = TypeVar("F", bound=Callable[..., Any])

# numba's own pool sleeps between kernels. Its OpenMP layer spins at barriers, as torch's does: on cores that others use
# too, products were measured ten times slower so. The pool takes one caller at a time; a second ends the process.
numba.config.THREADING_LAYER = "workqueue"
_RUNNING = threading.RLock()


class _Budget(threading.local):
    """The threads that the block in this thread holds; 0 outside."""

    num_threads = 0


_BUDGET = _Budget()


def compiled(*, parallel: bool = False, exact: bool = False) -> Callable[[F], F]:
    """Compile a kernel on its first call, for the types of that call, without the interpreter's lock.

    The machine code is kept on disk (`kea.kernels.caching`). `exact`: no sum is reordered.
    """

    def decorate(function: F) -> F:
        options = {"parallel": parallel, "nogil": True, "fastmath": False if exact else set(FAST_SUMS)}
        kernel: F = numba.njit(**options)(function)
        keep_on_disk(kernel)
        return kernel

    return decorate


@contextmanager
def running_kernels() -> Iterator[int]:
    """Hold the kernels' threads while the block runs; gives their number, which is torch's: one budget for both.

    Meanwhile an operator of torch runs on the thread that calls it alone. May be nested.
    """
    if _BUDGET.num_threads:
        yield _BUDGET.num_threads
        return
    with _RUNNING:
        given = torch.get_num_threads()
        _BUDGET.num_threads = max(1, min(given, int(numba.config.NUMBA_NUM_THREADS)))
        numba.set_num_threads(_BUDGET.num_threads)
        torch.set_num_threads(1)
        try:
            yield _BUDGET.num_threads
        finally:
            torch.set_num_threads(given)
            _BUDGET.num_threads = 0

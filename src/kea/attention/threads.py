"""Which threads run our CPU kernels: one budget for them and torch.

Owns the one lock under which kernels run. It stands here, since the room of kernels knows no torch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

RUNNING = threading.RLock()
"""Held while kernels run: by itself where their number of threads is known and no operator of torch runs meanwhile."""


class _Budget(threading.local):
    """The threads that the block in this thread holds; 0 outside."""

    num_threads = 0


_BUDGET = _Budget()


@contextmanager
def running_kernels(*, has_operators: bool = True) -> Iterator[int]:
    """Hold the kernels' threads while the block runs; gives their number, which is torch's: one budget for both.

    Meanwhile an operator of torch runs on the thread that calls it alone; telling torch so costs 0.1 ms where its code
    is out of the caches, and is left out where the block `has_operators` of torch not. May be nested.
    """
    if _BUDGET.num_threads:
        yield _BUDGET.num_threads
        return
    with RUNNING:
        given = torch.get_num_threads()
        _BUDGET.num_threads = given
        if has_operators:
            torch.set_num_threads(1)
        try:
            yield given
        finally:
            if has_operators:
                torch.set_num_threads(given)
            _BUDGET.num_threads = 0

"""A program: kernels that all threads run in order, each cut into chunks that whoever is free takes next.

One call computes all of them. Between two kernels the threads wait for each other by spinning, which costs under a
microsecond; starting a thread pool for each kernel would cost a hundred. A thread that the system has taken away delays
the others by one chunk at most: they take the rest. Owns the threads. Knows no models.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, types
from numba.core.ccallback import CFunc
from numpy.typing import NDArray

from kea.kernels.caching import keep_on_disk
from kea.kernels.machine import CACHE_LINE_BYTES, call_kernel, fetch_add, load_acquire, pause, yield_core

I64 = NDArray[np.int64]

WORDS = CACHE_LINE_BYTES // 8
NEXT, DONE, CHUNKS, CODE, ARGUMENTS = range(5)
"""An operation's words: next chunk to take, chunks done, chunks in all, addresses of the kernel and its arguments."""

SPINS = 4000
"""Pauses before a waiting thread offers its core to others: about 50 microseconds."""

# Sums may be formed in vectors; what is not finite keeps its meaning, since masked logits are -inf.
FAST_SUMS = frozenset({"reassoc", "contract", "nsz"})

SIGNATURE = types.void(types.int64, types.int64)


class Kernel:
    """A function of (address of its arguments, chunk), compiled once, when its address is first asked for.

    Owns the machine code: an address is good as long as its kernel lives. May be asked by several threads.
    """

    def __init__(self, function: Callable[[int, int], None]) -> None:
        self._function = function
        self._compiled: Any = None
        self._lock = threading.Lock()
        self.__doc__ = function.__doc__

    @property
    def address(self) -> int:
        with self._lock:
            if self._compiled is None:
                options = {"fastmath": set(FAST_SUMS)}
                compiled = CFunc(self._function, (SIGNATURE.args, SIGNATURE.return_type), {}, options)
                keep_on_disk(compiled)
                compiled.compile()
                self._compiled = compiled
            return int(self._compiled.address)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def run_rows(state: int, num_ops: int) -> None:
    """Take part in a program until all of it is done. `state`: the address of its counters [num_ops, WORDS]."""
    for op in range(num_ops):
        row = state + op * CACHE_LINE_BYTES
        taken, done = row + 8 * NEXT, row + 8 * DONE
        chunks = load_acquire(row + 8 * CHUNKS)
        code, arguments = load_acquire(row + 8 * CODE), load_acquire(row + 8 * ARGUMENTS)
        chunk = fetch_add(taken, 1)
        while chunk < chunks:
            call_kernel(code, arguments, chunk)
            fetch_add(done, 1)
            chunk = fetch_add(taken, 1)
        spins = 0
        while load_acquire(done) < chunks:
            pause()
            spins += 1
            if spins > SPINS:
                yield_core()


keep_on_disk(run_rows)


@dataclass(frozen=True, slots=True)
class Operation:
    """A kernel with its arguments [N] int64 (addresses, sizes, bits of fp64), in `num_chunks` chunks.

    `num_chunks` None: set anew for each run, by the operation's name.
    """

    kernel: Kernel
    arguments: I64
    num_chunks: int | None
    name: str = ""


class Program:
    """Operations in order, ready to be run any number of times. Keeps what its arguments point to alive in `holds`."""

    def __init__(self, operations: list[Operation], holds: object = None) -> None:
        self._operations = operations
        self._holds = holds
        self._template = aligned_zeros((len(operations), WORDS), np.int64)
        for row, operation in zip(self._template, operations, strict=True):
            row[CHUNKS] = operation.num_chunks or 0
            row[CODE] = operation.kernel.address
            row[ARGUMENTS] = operation.arguments.ctypes.data
        self._open: dict[str, list[int]] = {}
        for index, operation in enumerate(operations):
            if operation.num_chunks is None:
                self._open.setdefault(operation.name, []).append(index)

    def state(self, **num_chunks: int) -> I64:
        """Return the counters of one run: a late thread must not meet those of another."""
        for name, indices in self._open.items():
            self._template[indices, CHUNKS] = num_chunks[name]
        state = aligned_zeros(self._template.shape, np.int64)
        state[:] = self._template
        return state


class Team:
    """The threads that run programs beside the caller: one team in a process, as it has one set of cores.

    Its threads sleep between programs and end with the process.
    """

    def __init__(self) -> None:
        self._job: tuple[Program, I64] | None = None
        self._calls: list[threading.Semaphore] = []

    def run(self, program: Program, num_threads: int, **num_chunks: int) -> None:
        """Run a program on this thread and `num_threads` - 1 others, which take part as they wake up.

        One caller at a time: to be called where `running_kernels` gave `num_threads`.
        """
        while len(self._calls) < num_threads - 1:
            self._calls.append(threading.Semaphore(0))
            threading.Thread(target=self._serve, args=(self._calls[-1],), daemon=True, name="kea-kernels").start()
        state = program.state(**num_chunks)
        self._job = (program, state)
        for call in self._calls[: num_threads - 1]:
            call.release()
        run_rows(state.ctypes.data, len(state))
        self._job = None

    def _serve(self, call: threading.Semaphore) -> None:
        while True:
            call.acquire()
            job = self._job  # None where the program has ended meanwhile
            if job is not None:
                run_rows(job[1].ctypes.data, len(job[1]))
            job = None  # a sleeping thread must not keep a model alive


TEAM = Team()


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return zeros that begin at a cache line: a row of 64 bytes that lies across two costs two reads."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + CACHE_LINE_BYTES, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE_BYTES
    array: NDArray[Any] = raw[start : start + size].view(dtype).reshape(shape)
    return array

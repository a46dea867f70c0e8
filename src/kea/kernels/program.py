"""A program: kernels that all threads run in order, each cut into chunks that whoever is free takes next.

One call computes all of them, once or for several rounds. Between two kernels the threads wait for each other by
spinning, which costs under a microsecond; starting a thread pool for each kernel would cost a hundred. A thread that
the system has taken away delays the others by one chunk at most: they take the rest. Owns the threads. Knows no models.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.core.ccallback import CFunc
from numpy.typing import NDArray

from kea.kernels.caching import keep_on_disk
from kea.kernels.machine import CACHE_LINE_BYTES, call_kernel, fetch_add, load_acquire, pause, try_swap, yield_core

I64 = NDArray[np.int64]

WORDS = CACHE_LINE_BYTES // 8
LEFT, DONE, CHUNKS, CODE, ARGUMENTS = range(5)
"""An operation's words: chunks left to take, chunks done, chunks in all, addresses of the kernel and its arguments.

The first two hold the round above `ROUND_SHIFT` bits: whoever first comes to an operation in a round sets them up, and
a thread that comes late sees that others have gone on. So they are never reset, and rounds follow each other at once.
"""

ROUND_SHIFT = 24
LEFT_MASK = (1 << ROUND_SHIFT) - 1
NONE_LEFT, IS_LATE = -1, -2

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
        self.compile()
        return int(self._compiled.address)

    def compile(self) -> None:
        """Compile the kernel, or load it from disk, if neither was done before."""
        with self._lock:
            if self._compiled is None:
                options = {"fastmath": set(FAST_SUMS)}
                compiled = CFunc(self._function, (SIGNATURE.args, SIGNATURE.return_type), {}, options)
                keep_on_disk(compiled)
                compiled.compile()
                self._compiled = compiled


@njit(nogil=True)  # type: ignore[untyped-decorator]
def take_chunk(row: int, current: int) -> int:
    """Return an operation's next chunk in round `current`; NONE_LEFT, or IS_LATE where a later round came to it."""
    left, done = row + 8 * LEFT, row + 8 * DONE
    chunks = load_acquire(row + 8 * CHUNKS)
    while True:
        word = load_acquire(left)
        if word >> ROUND_SHIFT > current:
            return IS_LATE
        if word >> ROUND_SHIFT < current:
            before = load_acquire(done)
            if before >> ROUND_SHIFT < current:
                try_swap(done, before, current << ROUND_SHIFT)
            try_swap(left, word, (current << ROUND_SHIFT) + chunks)
        elif word & LEFT_MASK == 0:
            return NONE_LEFT
        elif try_swap(left, word, word - 1):  # the round is not over before this chunk is: its number of chunks stays
            return load_acquire(row + 8 * CHUNKS) - (word & LEFT_MASK)  # type: ignore[no-any-return]


@njit(nogil=True)  # type: ignore[untyped-decorator]
def run_rows(state: int, num_ops: int, first: int, last: int) -> None:
    """Take part in the rounds [first, last) of a program until all is done. `state`: address of its words."""
    current, op = first, 0
    while op < num_ops:
        row = state + op * CACHE_LINE_BYTES
        chunk = take_chunk(row, current)
        while chunk >= 0:
            call_kernel(load_acquire(row + 8 * CODE), load_acquire(row + 8 * ARGUMENTS), chunk)
            fetch_add(row + 8 * DONE, 1)
            chunk = take_chunk(row, current)
        if chunk == IS_LATE:
            current, op = load_acquire(state + 8 * LEFT) >> ROUND_SHIFT, 0
            if current >= last:
                return
            continue
        goal = (current << ROUND_SHIFT) + load_acquire(row + 8 * CHUNKS)
        spins = 0
        while load_acquire(row + 8 * DONE) < goal:
            pause()
            spins += 1
            if spins > SPINS:
                yield_core()
        op += 1
        if op == num_ops and current + 1 < last:
            current, op = current + 1, 0


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
        self._state = aligned_zeros((len(operations), WORDS), np.int64)
        for row, operation in zip(self._state, operations, strict=True):
            row[CHUNKS] = operation.num_chunks or 0
            row[CODE] = operation.kernel.address
            row[ARGUMENTS] = operation.arguments.ctypes.data
        self._open: dict[str, list[int]] = {}
        for index, operation in enumerate(operations):
            if operation.num_chunks is None:
                self._open.setdefault(operation.name, []).append(index)
        self._chosen = dict.fromkeys(self._open, 0)
        self._address = int(self._state.ctypes.data)
        self._num_rounds = 0

    def begin(self, num_rounds: int, num_chunks: Mapping[str, int]) -> Job:
        """Return a run of so many rounds. The one before must be over, but for threads that come late."""
        for name, chosen in self._chosen.items():
            if num_chunks[name] != chosen:
                self._state[self._open[name], CHUNKS] = self._chosen[name] = num_chunks[name]
        first = self._num_rounds + 1
        self._num_rounds += num_rounds
        return Job(self, self._address, len(self._state), first, first + num_rounds)


class Job(NamedTuple):
    """One run of a program, as `run_rows` takes it. Keeps the program alive."""

    program: Program
    state: int
    num_ops: int
    first: int
    last: int

    def take_part(self) -> None:
        run_rows(self.state, self.num_ops, self.first, self.last)


class Team:
    """The threads that run programs beside the caller: one team in a process, as it has one set of cores.

    Its threads sleep between programs and end with the process.
    """

    def __init__(self) -> None:
        self._job: Job | None = None
        self._calls: list[threading.Lock] = []  # by thread: held while it sleeps, released to wake it

    def run(self, program: Program, num_threads: int, *, num_rounds: int = 1, **num_chunks: int) -> None:
        """Run a program on this thread and `num_threads` - 1 others, which take part as they wake up; `num_rounds`
        times, one after the other, with the same numbers of chunks.

        One caller at a time: to be called where `running_kernels` gave `num_threads`.
        """
        while len(self._calls) < num_threads - 1:
            self._calls.append(threading.Lock())
            self._calls[-1].acquire()
            threading.Thread(target=self._serve, args=(self._calls[-1],), daemon=True, name="kea-kernels").start()
        job = self._job = program.begin(num_rounds, num_chunks)
        for call in self._calls[: num_threads - 1]:
            if call.locked():  # else it was called before and is on its way to look for a job
                call.release()
        job.take_part()
        self._job = None

    def _serve(self, call: threading.Lock) -> None:
        while True:
            call.acquire()
            job = self._job  # None where the program has ended meanwhile
            if job is not None:
                job.take_part()
            job = None  # a sleeping thread must not keep a model alive


TEAM = Team()


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return zeros that begin at a cache line: a row of 64 bytes that lies across two costs two reads."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + CACHE_LINE_BYTES, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE_BYTES
    array: NDArray[Any] = raw[start : start + size].view(dtype).reshape(shape)
    return array

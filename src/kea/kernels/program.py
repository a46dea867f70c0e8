"""A program: kernels that all threads run in order, each cut into chunks that whoever is free takes next.

One call computes all of them, once or for several rounds. Between two kernels the threads wait for each other by
spinning, which costs under a microsecond; starting a thread pool for each kernel would cost a hundred. A thread that
the system has taken away delays the others by one chunk at most: they take the rest. Owns the threads. Knows no models.

What is limited by reading memory is a *stream*: half of the threads take its chunks from the front, half from the back,
so each reads in one direction, and knows what it reads next while it waits for the others.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.core.ccallback import CFunc
from numpy.typing import NDArray

from kea.kernels.caching import keep_on_disk
from kea.kernels.machine import (
    CACHE_LINE_BYTES,
    call_kernel,
    fetch_add,
    load_acquire,
    pause,
    prefetch_line,
    try_swap,
    yield_core,
)

I64 = NDArray[np.int64]

WORDS = CACHE_LINE_BYTES // 8
LEFT, DONE, CHUNKS, CODE, ARGUMENTS, STREAM, AHEAD, OWN = range(8)
"""An operation's words: chunks left to take, chunks done, chunks in all, addresses of the kernel and its arguments; of
what it streams from memory, and of what the next operation that does so streams, or 0; of what each thread computes for
itself before, or 0.

The first two hold the round above `ROUND_SHIFT` bits: whoever first comes to an operation in a round sets them up, and
a thread that comes late sees that others have gone on. So they are never reset, and rounds follow each other at once.
"""

ROUND_SHIFT = 24
LEFT_MASK = (1 << ROUND_SHIFT) - 1
BACK_SHIFT = ROUND_SHIFT // 2
FRONT_MASK = MAX_STREAM_CHUNKS = (1 << BACK_SHIFT) - 1
"""The word LEFT of an operation that streams: chunks taken from the back, above those taken from the front."""

NONE_LEFT, IS_LATE, FROM_BACK = -1, -2, 1 << 32

FETCH_BYTES = 4 * CACHE_LINE_BYTES
"""What a waiting thread asks for between two looks at what it waits for."""

START, STOP, CHUNK_BYTES, FIRST_BYTES, NUM_STREAM = range(5)
"""A stream's words: see `Stream`."""

OWN_CODE, OWN_ARGUMENTS, OWN_STRIDE, NUM_OWN = range(4)
"""The words of a thread's own part: see `Own`; bytes from one thread's arguments of the operation to the next one's."""

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
def set_up(row: int, word: int, current: int, left: int) -> None:
    """Set an operation's words up for round `current`, unless others did so since its word LEFT was `word`."""
    before = load_acquire(row + 8 * DONE)
    if before >> ROUND_SHIFT < current:
        try_swap(row + 8 * DONE, before, current << ROUND_SHIFT)
    try_swap(row + 8 * LEFT, word, (current << ROUND_SHIFT) + left)


@njit(nogil=True)  # type: ignore[untyped-decorator]
def take_chunk(row: int, current: int, member: int) -> int:
    """Return an operation's next chunk in round `current`; NONE_LEFT, or IS_LATE where a later round came to it.

    Of one that streams, threads with an odd number `member` take chunks from the back, + FROM_BACK, others from the
    front.
    """
    left = row + 8 * LEFT
    is_stream = load_acquire(row + 8 * STREAM) != 0
    while True:
        word, chunks = load_acquire(left), load_acquire(row + 8 * CHUNKS)
        if word >> ROUND_SHIFT > current:
            return IS_LATE
        if word >> ROUND_SHIFT < current:
            set_up(row, word, current, 0 if is_stream else chunks)
        # The round of a chunk that was taken is not over before it is computed: its number of chunks stays.
        elif not is_stream:
            if word & LEFT_MASK == 0:
                return NONE_LEFT
            if try_swap(left, word, word - 1):
                return load_acquire(row + 8 * CHUNKS) - (word & LEFT_MASK)  # type: ignore[no-any-return]
        else:
            front, back = word & FRONT_MASK, (word & LEFT_MASK) >> BACK_SHIFT
            if front + back >= chunks:
                return NONE_LEFT
            comes_from_back = member & 1
            if try_swap(left, word, word + (1 << (BACK_SHIFT * comes_from_back))):
                return chunks - 1 - back + FROM_BACK if comes_from_back else front  # type: ignore[no-any-return]


@njit(nogil=True)  # type: ignore[untyped-decorator]
def wait_for(row: int, goal: int, member: int, fetched: int) -> int:
    """Wait until the word DONE of an operation is `goal`; meanwhile, have fetched what this thread streams next, of
    which `fetched` bytes were before. Return how many were then.
    """
    spins, place, step, last = 0, 0, 0, 0
    ahead = load_acquire(row + 8 * AHEAD)
    if ahead != 0:
        place, step, last = place_of(ahead, member)
    while load_acquire(row + 8 * DONE) < goal:
        if fetched < last:
            for line in range(fetched, fetched + FETCH_BYTES, CACHE_LINE_BYTES):
                prefetch_line(place + step * line)
            fetched += FETCH_BYTES
            continue
        pause()
        spins += 1
        if spins > SPINS:
            yield_core()
    return fetched


@njit(nogil=True)  # type: ignore[untyped-decorator]
def place_of(stream: int, member: int) -> tuple[int, int, int]:
    """Return where a thread begins in a stream, its direction, and the bytes that it may fetch before."""
    part = member // 2 * load_acquire(stream + 8 * CHUNK_BYTES)
    size = load_acquire(stream + 8 * FIRST_BYTES)
    if member & 1 == 0:
        return load_acquire(stream + 8 * START) + part, 1, size
    return load_acquire(stream + 8 * STOP) - part - CACHE_LINE_BYTES, -1, size


@njit(nogil=True)  # type: ignore[untyped-decorator]
def run_rows(state: int, num_ops: int, first: int, last: int, member: int) -> None:
    """Take part, as the thread number `member`, in the rounds [first, last) of a program until all is done. `state`:
    address of its words.
    """
    current, op, fetched = first, 0, 0
    while op < num_ops:
        row = state + op * CACHE_LINE_BYTES
        chunk = take_chunk(row, current, member)
        count, arguments = 0, load_acquire(row + 8 * ARGUMENTS)
        own = load_acquire(row + 8 * OWN)
        if own != 0 and chunk >= 0:
            call_kernel(load_acquire(own + 8 * OWN_CODE), load_acquire(own + 8 * OWN_ARGUMENTS), member)
            arguments += member * load_acquire(own + 8 * OWN_STRIDE)
        while chunk >= 0:
            call_kernel(load_acquire(row + 8 * CODE), arguments, chunk)
            count += 1
            chunk = take_chunk(row, current, member)
        if chunk == IS_LATE:
            current, op, fetched = load_acquire(state + 8 * LEFT) >> ROUND_SHIFT, 0, 0
            if current >= last:
                return
            continue
        if count > 0:
            fetch_add(row + 8 * DONE, count)
        if load_acquire(row + 8 * STREAM) != 0:
            fetched = 0
        fetched = wait_for(row, (current << ROUND_SHIFT) + load_acquire(row + 8 * CHUNKS), member, fetched)
        op += 1
        if op == num_ops and current + 1 < last:
            current, op = current + 1, 0


keep_on_disk(run_rows)


class Stream(NamedTuple):
    """What an operation reads from memory, chunk by chunk, from the address `start` to `stop`.

    `first_bytes`: how much from its first chunk on a thread may have fetched into its cache while it waits for the
    operations before.
    """

    start: int
    stop: int
    chunk_bytes: int
    first_bytes: int


class Own(NamedTuple):
    """What each thread computes for itself alone, before its first chunk of an operation: a kernel that gets the
    thread's number as its chunk.

    For what is small beside the cost of having it from another core's cache: there a line takes about 7 ns, two cores
    that cut 32 rows into tiles for each other take twice as long as one that cuts all of them. A thread without a chunk
    does not compute it; so until the operation is done, nobody may write to what it reads.
    """

    kernel: Kernel
    arguments: I64


@dataclass(frozen=True, slots=True)
class Operation:
    """A kernel with its arguments [N] int64 (addresses, sizes, bits of fp64), in `num_chunks` chunks.

    `num_chunks` None: set anew for each run, by the operation's name. `stream`: only with a number of chunks, at most
    MAX_STREAM_CHUNKS. `own`: with arguments for each thread [threads, N], and for no more threads than these.
    """

    kernel: Kernel
    arguments: I64
    num_chunks: int | None
    name: str = ""
    stream: Stream | None = None
    own: Own | None = None


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
        self._streams = self._look_ahead()
        self._own = np.zeros((len(operations), NUM_OWN), np.int64)
        self.max_threads: int | None = None
        for index, operation in enumerate(operations):
            if operation.own is not None:
                self._keep_apart(index, operation.arguments, operation.own)
        self._open: dict[str, list[int]] = {}
        for index, operation in enumerate(operations):
            if operation.num_chunks is None:
                self._open.setdefault(operation.name, []).append(index)
        self._chosen = dict.fromkeys(self._open, 0)
        self._address = int(self._state.ctypes.data)
        self._num_rounds = 0

    def _look_ahead(self) -> I64:
        """Write down what operations stream, and what the next one to do so streams; behind the last, the first."""
        streams = np.zeros((len(self._operations), NUM_STREAM), np.int64)
        found = 0
        for index in 2 * [*reversed(range(len(self._operations)))]:
            self._state[index, AHEAD] = found
            stream = self._operations[index].stream
            if stream is not None:
                num_chunks = self._operations[index].num_chunks
                assert num_chunks is not None, "a stream has a number of chunks"
                assert num_chunks <= MAX_STREAM_CHUNKS
                streams[index] = stream
                self._state[index, STREAM] = found = streams[index].ctypes.data
        return streams

    def _keep_apart(self, index: int, arguments: I64, own: Own) -> None:
        """Write down what an operation has its threads compute for themselves."""
        num_threads, width = arguments.shape
        self._own[index] = own.kernel.address, own.arguments.ctypes.data, 8 * width
        self._state[index, OWN] = self._own[index].ctypes.data
        self.max_threads = num_threads if self.max_threads is None else min(self.max_threads, num_threads)

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

    def take_part(self, member: int) -> None:
        """Run with the others; but a thread that was woken for a larger job before has no arguments here."""
        if self.program.max_threads is not None and member >= self.program.max_threads:
            return
        run_rows(self.state, self.num_ops, self.first, self.last, member)


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
        assert program.max_threads is None or num_threads <= program.max_threads, "threads without arguments of theirs"
        while len(self._calls) < num_threads - 1:
            self._calls.append(threading.Lock())
            self._calls[-1].acquire()
            arguments = (self._calls[-1], len(self._calls))
            threading.Thread(target=self._serve, args=arguments, daemon=True, name="kea-kernels").start()
        job = self._job = program.begin(num_rounds, num_chunks)
        for call in self._calls[: num_threads - 1]:
            if call.locked():  # else it was called before and is on its way to look for a job
                call.release()
        job.take_part(0)
        self._job = None

    def forget_threads(self) -> None:
        """Begin anew, in a process that was forked: only the thread that forked is in it."""
        self._job = None
        self._calls.clear()

    def _serve(self, call: threading.Lock, member: int) -> None:
        while True:
            call.acquire()
            job = self._job  # None where the program has ended meanwhile
            if job is not None:
                job.take_part(member)
            job = None  # a sleeping thread must not keep a model alive


TEAM = Team()
if hasattr(os, "register_at_fork"):  # not on Windows, which forks no processes
    os.register_at_fork(after_in_child=TEAM.forget_threads)


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return zeros that begin at a cache line: a row of 64 bytes that lies across two costs two reads."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + CACHE_LINE_BYTES, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE_BYTES
    array: NDArray[Any] = raw[start : start + size].view(dtype).reshape(shape)
    return array

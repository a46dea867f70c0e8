"""Programs: every chunk of every operation is computed once, in order, whoever computes it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numba import carray

from kea.kernels.machine import fetch_add, i64_at
from kea.kernels.program import (
    AHEAD,
    FROM_BACK,
    IS_LATE,
    NONE_LEFT,
    STREAM,
    TEAM,
    WORDS,
    Kernel,
    Operation,
    Own,
    Program,
    Stream,
    place_of,
    take_chunk,
)


def count(address: int, chunk: int) -> None:
    """Count a chunk, and whether all of the operation before were done when it began."""
    chunk &= FROM_BACK - 1
    a = carray(i64_at(address), 3)
    counts = carray(i64_at(a[0]), a[1] + 1)
    if a[2] != 0:
        before = carray(i64_at(a[2]), a[1] + 1)
        for i in range(a[1]):
            if before[i] != counts[chunk] + 1:
                fetch_add(a[0] + 8 * a[1], 1)
    fetch_add(a[0] + 8 * chunk, 1)


COUNT = Kernel(count)


def create(
    num_ops: int, num_chunks: int, *, streams: bool = False
) -> tuple[Program, np.ndarray[tuple[int, int], np.dtype[np.int64]]]:
    counts = np.zeros((num_ops, num_chunks + 1), np.int64)
    operations = []
    for i in range(num_ops):
        before = counts[i - 1].ctypes.data if i else 0
        stream = Stream(counts.ctypes.data, counts.ctypes.data + counts.nbytes, 8, 1024) if streams and i % 3 else None
        arguments = np.array([counts[i].ctypes.data, num_chunks, before])
        operations.append(Operation(COUNT, arguments, num_chunks, stream=stream))
    return Program(operations, counts), counts


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_each_chunk_is_computed_once_and_operations_wait_for_each_other(num_threads: int, streams: bool) -> None:
    program, counts = create(50, 7, streams=streams)
    for run in range(1, 200):
        TEAM.run(program, num_threads)
        assert (counts[:, :-1] == run).all()
        assert (counts[:, -1] == 0).all()


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_rounds_follow_each_other_as_runs_do(num_threads: int, streams: bool) -> None:
    program, counts = create(6, 7, streams=streams)
    for run in range(1, 100):
        TEAM.run(program, num_threads, num_rounds=20)
        assert (counts[:, :-1] == 20 * run).all()
        assert (counts[:, -1] == 0).all()


def test_an_open_number_of_chunks_is_given_with_each_run() -> None:
    counts = np.zeros(10, np.int64)
    arguments = np.array([counts.ctypes.data, 9, 0])
    program = Program([Operation(COUNT, arguments, None, name="units")], counts)
    for num_chunks in (3, 0, 9):
        TEAM.run(program, 2, units=num_chunks)
    assert counts.tolist() == [2, 2, 2, 1, 1, 1, 1, 1, 1, 0]


def test_chunks_of_a_stream_are_taken_from_both_ends_until_none_is_left() -> None:
    program, _counts = create(2, 5, streams=True)
    row = program.begin(1, {}).state + 8 * WORDS
    assert [take_chunk(row, 1, member) for member in (0, 1, 3, 2)] == [0, 4 + FROM_BACK, 3 + FROM_BACK, 1]
    assert [take_chunk(row, 1, member) for member in (1, 0, 1)] == [2 + FROM_BACK, NONE_LEFT, NONE_LEFT]
    assert take_chunk(row, 2, 0) == 0
    assert take_chunk(row, 1, 0) == IS_LATE


def test_a_thread_fetches_what_the_next_operation_gives_it_first() -> None:
    """The first operation streams nothing, the second and the third do; behind the last comes the second one."""
    program, counts = create(3, 5, streams=True)
    start, stop = counts.ctypes.data, counts.ctypes.data + counts.nbytes
    for op in range(3):
        ahead = int(program._state[op, AHEAD])
        assert ahead == program._state[(1, 2, 1)[op], STREAM]
        assert [place_of(ahead, member) for member in range(4)] == [
            (start, 1, 1024),
            (stop - 64, -1, 1024),
            (start + 8, 1, 1024),
            (stop - 72, -1, 1024),
        ]


def prepare(address: int, thread: int) -> None:
    """Count a thread's turn."""
    a = carray(i64_at(address), 4)
    a[thread] += 1


def note(address: int, chunk: int) -> None:
    """Note by whose arguments a chunk was computed, and whether its thread had prepared for this run."""
    a = carray(i64_at(address), 5)
    fetch_add(a[0] + 8 * chunk, 1)
    turns = carray(i64_at(a[1]), 4)
    if turns[a[2]] < a[3]:
        fetch_add(a[4], 1)


def test_a_thread_prepares_for_itself_before_its_first_chunk_and_has_arguments_of_its_own() -> None:
    turns, counts, faults = np.zeros(4, np.int64), np.zeros(50, np.int64), np.zeros(1, np.int64)
    arguments = np.array(
        [[counts.ctypes.data, turns.ctypes.data, thread, 0, faults.ctypes.data] for thread in range(3)]
    )
    operation = Operation(Kernel(note), arguments, 50, own=Own(Kernel(prepare), turns))
    program = Program([operation], (turns, counts, faults))
    for run in range(1, 100):
        arguments[:, 3] = turns[:3] + 1
        TEAM.run(program, 3)
        assert (counts == run).all()
    assert faults[0] == 0
    assert 99 <= turns.sum() <= 3 * 99
    program.begin(1, {}).take_part(3)  # woken for a larger job before
    assert turns[3] == 0


def test_an_empty_program_ends() -> None:
    TEAM.run(Program([]), 2)


def test_programs_keep_their_counters_while_other_threads_are_busy() -> None:
    """Threads that wake up late meet the counters of a run that has ended, and do nothing."""
    stop = threading.Event()
    spinners = [threading.Thread(target=lambda: [None for _ in iter(stop.is_set, True)]) for _ in range(3)]
    for spinner in spinners:
        spinner.start()
    program, counts = create(5, 3)
    try:
        for run in range(1, 100):
            TEAM.run(program, 4)
            assert (counts[:, :-1] == run).all()
    finally:
        stop.set()
        for spinner in spinners:
            spinner.join()


def test_threads_that_ask_at_once_get_one_address() -> None:
    kernel = Kernel(count)
    start = threading.Barrier(4)

    def ask() -> int:
        start.wait()
        return kernel.address

    with ThreadPoolExecutor(4) as pool:
        addresses = {future.result() for future in [pool.submit(ask) for _ in range(4)]}
    assert addresses == {kernel.address}


def test_the_sleeping_team_keeps_no_program_alive() -> None:
    program, counts = create(20_000, 7)  # long enough for the others to take part
    held = weakref.ref(counts)
    TEAM.run(program, 2)
    del program, counts
    deadline_s = time.monotonic() + 10.0
    while held() is not None and time.monotonic() < deadline_s:
        time.sleep(0.01)  # helpers that wake up late are still on their way to sleep
        gc.collect()
    assert held() is None


FORKED = """
import os, threading
from tests.kernels.test_program import TEAM, create

program, counts = create(20, 7)
TEAM.run(program, 3)
child = os.fork()
TEAM.run(program, 3)
assert (counts[:, :-1] == 2).all()
names = [thread.name for thread in threading.enumerate()]
assert names.count("kea-kernels") == 2, names
if child:
    _, status = os.waitpid(child, 0)
    raise SystemExit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system forks no processes")
def test_a_forked_process_has_a_team_of_its_own() -> None:
    """Threads are not forked: without new ones a program would run on one thread, and nobody would know."""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", FORKED], cwd=root, check=True, timeout=60)

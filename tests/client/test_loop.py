"""Whoever waits for the connection's loop gets an answer, also from one that ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from kea.client.loop import LoopThread, await_result, result_of
from kea.errors import Cancelled


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.stop()


async def answer() -> int:
    return 7


def test_what_comes_while_the_loop_ends_is_answered(loop: LoopThread) -> None:
    answers: list[int | Exception] = []

    def ask() -> None:
        try:
            while True:
                answers.append(loop.run(answer()))
        except Cancelled as error:
            answers.append(error)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    loop.call_soon(lambda: time.sleep(0.05))
    loop.stop()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive(), "a caller hangs"
    assert sum(isinstance(item, Cancelled) for item in answers) == 4


def test_the_end_of_the_loop_is_told_as_an_error_of_ours(loop: LoopThread) -> None:
    waiting = loop.begin(asyncio.sleep(100))
    loop.stop()
    with pytest.raises(Cancelled, match="session was closed"):
        result_of(waiting)


async def test_and_is_no_cancellation_of_the_task_that_awaits(loop: LoopThread) -> None:
    waiting = asyncio.ensure_future(await_result(loop.begin(asyncio.sleep(100))))
    cancelled = asyncio.ensure_future(await_result(loop.begin(asyncio.sleep(100))))
    await asyncio.sleep(0.01)
    cancelled.cancel()
    await asyncio.to_thread(loop.stop)
    with pytest.raises(Cancelled):
        await waiting
    with pytest.raises(asyncio.CancelledError):
        await cancelled


def test_the_loops_own_thread_does_not_wait_for_itself(loop: LoopThread) -> None:
    done = threading.Event()

    async def end() -> None:
        done.set()

    loop.call_soon(lambda: loop.finish(end()))
    assert done.wait(5)
    loop.stop()
    loop.finish(end())

"""Many short random requests, one after another and many at once: nothing is left, in pages or in the process."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import pytest

from kea.engine.base import ContextSpec
from kea.types import GenerateOptions, Sampling, Speculation, Stopping
from tests.engine.conftest import MakeDriver
from tests.engine.driver import Driver, Output

AT_ONCE = 24


def _rss_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _start(driver: Driver, rng: random.Random) -> tuple[int, Output]:
    """Open a context with a random prompt of a few common beginnings, generate, and sometimes fork or go on."""
    spec = ContextSpec(tenant=rng.choice("ab"), priority=rng.randrange(2), prompt_logprobs=rng.choice([None] * 9 + [1]))
    context = driver.context(spec)
    beginning = [rng.randrange(3)] * rng.randrange(1, 40)
    driver.append(context, [*beginning, *(rng.randrange(3, 512) for _ in range(rng.randrange(1, 20)))])
    stopping = Stopping(rng.randrange(1, 6), ignore_eos=True)
    guess = rng.choice([None, Speculation(4, 1, 3)])
    output = driver.generate(
        context, GenerateOptions(stopping, Sampling(seed=rng.randrange(9)), logprobs=1, speculation=guess)
    )
    if rng.random() < 0.1:
        child = driver.fork(context)
        driver.generate(child, GenerateOptions(stopping))
        driver.free(child)  # at once: its generation is cancelled unborn
    return context, output


def _serve(driver: Driver, rng: random.Random, num_requests: int) -> None:
    running: list[tuple[int, Output]] = []
    for _ in range(num_requests):
        running.append(_start(driver, rng))
        while len(running) >= AT_ONCE:
            driver.step()
            for context, output in [pair for pair in running if pair[1].is_over]:
                assert output.error is None
                driver.free(context)
                running.remove((context, output))
        if rng.random() < 0.02:
            context, _ = running.pop(rng.randrange(len(running)))
            driver.free(context)
    driver.run()
    for context, _ in running:
        driver.free(context)
    driver.run()
    driver.outputs.clear()


def _check_nothing_is_left(driver: Driver) -> None:
    driver.core.check()
    snapshot = driver.core.snapshot()
    assert (snapshot.num_contexts, snapshot.num_running, snapshot.num_waiting) == (0, 0, 0)
    assert snapshot.memory.num_used == 0
    assert snapshot.memory.num_free + snapshot.memory.num_cached == snapshot.memory.num_pages
    table = driver.core._contexts
    assert not any((table._generating, table._queued, table._stalled, table._advancing, table.events))
    assert not driver.core._batcher._resting


def test_1000_requests_leave_nothing(make_driver: MakeDriver) -> None:
    driver = make_driver(14, max_num_batched_tokens=128, max_num_seqs=16, max_model_len=200)
    driver._check = False
    rng = random.Random(5)
    for _ in range(10):
        _serve(driver, rng, 100)
        _check_nothing_is_left(driver)
    assert driver.core.snapshot().num_preemptions > 0
    assert driver.core.snapshot().memory.num_evicted > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_10000_requests_do_not_grow_the_process(make_driver: MakeDriver) -> None:
    driver = make_driver(14, max_num_batched_tokens=128, max_num_seqs=16, max_model_len=200)
    driver._check = False
    rng = random.Random(6)
    _serve(driver, rng, 2000)
    before = _rss_bytes()
    for _ in range(8):
        _serve(driver, rng, 1000)
        _check_nothing_is_left(driver)
    assert _rss_bytes() - before < 4_000_000

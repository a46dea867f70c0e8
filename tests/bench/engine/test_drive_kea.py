"""Kea's own driver: what it measures on a tiny model, and that nothing of a measurement is left behind."""

from __future__ import annotations

from typing import Any

import pytest

from kea.bench.engine.drivers.drive_kea import Driver
from kea.bench.engine.shapes import Shape, write_checkpoint

TINY = Shape("tiny", 2, 64, 64, 4, 2, 400, head_dim=16, max_len=512)
PROMPTS = [[3 + index] * 20 for index in range(3)]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(TINY, "bfloat16", folder)
    driver = Driver()
    driver.load(str(folder), threads=1, kv_bytes=4096 * TINY.kv_token_values * 4, max_len=400)
    return driver


def test_no_measurement_leaves_a_context_or_a_page_in_use(driver: Driver) -> None:
    driver.prefill(PROMPTS[0])
    driver.warm(PROMPTS[1])
    driver.decode(PROMPTS, steps=2, warmups=1)
    driver.overhead(PROMPTS, steps=2, warmups=1)
    driver.steady(PROMPTS * 2, output_len=3, num_running=2)
    driver.lookup(PROMPTS, output_len=6, num_guesses=4)
    driver.arrivals([(0.0, PROMPTS[0], 3), (0.01, PROMPTS[1], 2)])
    driver.unloaded([(0.0, PROMPTS[2], 2)])
    driver.core.step()
    snapshot = driver.core.snapshot()
    assert (snapshot.num_contexts, snapshot.num_running, snapshot.memory.num_used) == (0, 0, 0)
    driver.core.check()


def test_a_large_batch_runs_together_in_the_memory_that_its_cell_gets(driver: Driver) -> None:
    driver.warm(PROMPTS[0])  # an output of one token, so that of longer ones nothing is known
    prompts = [[3 + index] * 96 for index in range(32)]  # in 4,096 tokens: 32 for each beside its prompt
    assert len(driver.decode(prompts, steps=4, warmups=2)["step_s"]) == 4


def test_a_step_is_longer_than_its_model_and_sampler(driver: Driver) -> None:
    result = driver.overhead(PROMPTS, steps=3, warmups=1)
    for step_s, model_s, sampler_s in zip(*(result[key] for key in ("step_s", "model_s", "sampler_s")), strict=True):
        assert model_s > 0
        assert sampler_s >= 0  # 0 where the model draws by itself
        assert model_s + sampler_s < step_s


def test_a_shared_tree_holds_its_tokens_once_and_an_unshared_one_does_not(driver: Driver) -> None:
    prefix, groups = list(range(3, 67)), [[70] * 16, [71] * 16]
    members: list[Any] = [(index % 2, [80 + index] * 5) for index in range(4)]
    held = {}
    for share in (True, False):
        result = driver.shared(
            prefix=prefix, groups=groups, prompts=members, strangers=[[90] * 20], steps=2, warmups=1, share=share
        )
        held[share] = result["kv_tokens"] / result["kv_once_tokens"]
    assert held[True] == 1.0
    assert held[False] > 1.5


def test_a_warm_prompt_reads_what_a_cold_one_left(driver: Driver) -> None:
    before = driver.core.snapshot().memory.hit_tokens
    driver.warm([5] * 200)
    assert driver.core.snapshot().memory.hit_tokens - before >= 192
    driver.prefill([5] * 200)
    assert driver.core.snapshot().memory.hit_tokens - before < 384


def test_guesses_are_counted_and_leave_outputs_as_they_are(driver: Driver) -> None:
    passage = [3 + index * 7 % 390 for index in range(40)]
    found = driver.lookup([passage * 3 + passage[:8], PROMPTS[1]], output_len=40, num_guesses=4)
    assert len(found["plain_s"]) == len(found["lookup_s"]) == 2
    assert min(found["plain_s"] + found["lookup_s"]) > 0
    assert 0 < found["num_right"] <= found["num_guesses"]
    assert found["same_ratio"] == 1.0
    assert driver.lookup(PROMPTS, output_len=4, num_guesses=0)["num_guesses"] == 0

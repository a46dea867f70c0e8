"""Who is served when not all can be: long prompts against short ones, tenants, priorities, the latency objective."""

from __future__ import annotations

import pytest

from kea.engine.base import ContextSpec, StepShape
from kea.engine.config import DecodingConfig
from kea.engine.draft import StepWork
from kea.engine.latency import LatencyModel
from kea.engine.queue import WaitingQueue
from kea.engine.standing import DecodeBatch
from kea.engine.state import ContextState
from kea.memory import KVMemory, MemoryConfig
from tests.engine.conftest import MakeDriver
from tests.engine.driver import Driver, greedy


def _prompt(seed: int, length: int) -> list[int]:
    return [seed + 3, *((seed * 131 + index * 17) % 500 + 3 for index in range(length - 1))]


def _plans(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> list[StepWork | DecodeBatch]:
    """Record every step that the driver's batcher plans."""
    plans: list[StepWork | DecodeBatch] = []
    plan = driver.core._batcher.plan

    def record() -> StepWork | DecodeBatch:
        plans.append(plan())
        return plans[-1]

    monkeypatch.setattr(driver.core._batcher, "plan", record)
    return plans


def test_short_prompts_pass_a_long_one(make_driver: MakeDriver) -> None:
    driver = make_driver(max_num_batched_tokens=32)
    long = driver.start(_prompt(0, 480), greedy(2))
    driver.step()
    short = [driver.start(_prompt(seed, 6), greedy(2)) for seed in range(1, 4)]
    for _ in range(4):
        driver.step()
    assert all(output.is_over for output in short)
    assert not long.token_ids
    driver.run()
    assert len(long.token_ids) == 2


def test_a_step_uses_its_whole_budget(make_driver: MakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make_driver(max_num_batched_tokens=64)
    plans = _plans(driver, monkeypatch)
    for seed in range(5):
        driver.start(_prompt(seed, 200), greedy(1))
    driver.run()
    spent = [sum(item.stop - item.start for item in work.items) for work in plans]
    assert spent[:-2] == [64] * (len(spent) - 2)
    assert sum(spent) == 1000


def test_a_better_priority_gets_the_whole_budget(make_driver: MakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make_driver(max_num_batched_tokens=64)
    late = driver.start(_prompt(0, 300), greedy(1), ContextSpec(priority=1))
    driver.step()
    plans = _plans(driver, monkeypatch)
    driver.start(_prompt(1, 300), greedy(1), ContextSpec(priority=0))
    for _ in range(4):
        driver.step()
    assert [[item.context.spec.priority for item in work.items] for work in plans] == [[0]] * 4
    driver.run()
    assert late.is_over


def test_limits_hold_in_every_step(make_driver: MakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make_driver(num_pages=40, max_num_seqs=6, max_num_batched_tokens=20, decoding=DecodingConfig(0.0012))
    plans = _plans(driver, monkeypatch)
    for seed in range(30):
        driver.start(_prompt(seed, 5 + 7 * seed), greedy(20), ContextSpec(priority=seed % 3, tenant=str(seed % 2)))
    driver.run()
    assert max(len(work.items) for work in plans) == 6
    assert max(sum(item.num_tokens for item in work.items) for work in plans) <= 20


def test_the_objective_counts_the_context_behind_a_chunk(
    make_driver: MakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = make_driver(max_num_batched_tokens=512, decoding=DecodingConfig(1.0))
    asked: list[tuple[StepShape, int]] = []

    def room(_: LatencyModel, shape: StepShape, limit_s: float, context_len: int = 0) -> int:
        asked.append((shape, context_len))
        return 20

    monkeypatch.setattr(LatencyModel, "max_prefill_tokens", room)
    driver.start(_prompt(0, 5), greedy(40))
    driver.step()
    plans = _plans(driver, monkeypatch)
    driver.start(_prompt(1, 100), greedy(1))
    for _ in range(5):
        driver.step()
    assert {context_len for _, context_len in asked} >= {0, 20, 40, 60, 80}
    assert all(shape.num_sequences == 1 for shape, _ in asked)
    assert [max(item.num_tokens for item in work.items) for work in plans] == [20] * 5


def _waiting(queue: WaitingQueue, arrival: int, tenant: str) -> ContextState:
    pages = KVMemory(MemoryConfig(1, 1)).open()
    context = ContextState(arrival, arrival, ContextSpec(tenant=tenant), pages)
    queue.push(context)
    return context


def test_a_tenant_that_comes_back_has_no_claim_on_the_past() -> None:
    queue = WaitingQueue()
    for arrival in range(3):
        queue.take(_waiting(queue, arrival, "busy"))
        queue.charge("busy", 1000)
    comers = [_waiting(queue, arrival, tenant) for arrival, tenant in enumerate(["new", "busy"], start=3)]
    queue.charge("new", 1500)
    assert [context.spec.tenant for context in queue.in_order(0)] == ["busy", "new"]
    assert len(queue) == len(comers)

"""What goes wrong for one request ends that request: the others' answers and the pages stay sound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from kea.attention.storage import pack, unpack
from kea.engine.base import ContextSpec
from kea.engine.generation import GenerationState
from kea.errors import EngineFault, InvalidRequest
from kea.models import Tokenizer
from kea.models.base import StepInput
from tests.engine.conftest import MakeDriver
from tests.engine.driver import Driver, greedy

TEXT = "One day, a girl named Sue found a red box in the garden. She wanted to open it, but her mom said no. Sue"


@pytest.fixture
def driver(make_driver: MakeDriver) -> Driver:
    return make_driver(max_num_batched_tokens=32)


@pytest.fixture
def prompt(stories_tokenizer: Tokenizer) -> list[int]:
    return stories_tokenizer.encode(TEXT)


def _break(*_: object, **__: object) -> None:
    raise RuntimeError("broken")


def _poison_rows(driver: Driver, monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[int], bool]) -> None:
    """Let the model compute no numbers for rows whose token is bad, as a faulty device may."""
    model = driver.core._runner._model

    class Faulty:
        facts = model.facts

        def forward(self, step: StepInput, cache: tuple[object, ...]) -> torch.Tensor:
            logits = model.forward(step, cache)  # type: ignore[arg-type]
            bad = torch.tensor([is_bad(token) for token in step.token_ids.tolist()])
            for layer in cache:
                for part in (layer.keys, layer.values):  # type: ignore[attr-defined]
                    nan = torch.full_like(unpack(part[step.plan.slots[bad]]), torch.nan)
                    part[step.plan.slots[bad]] = pack(nan, part.dtype)
            return logits

    monkeypatch.setattr(driver.core._runner, "_model", Faulty())


def test_a_fault_while_a_generation_starts_fails_it_alone(
    driver: Driver, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = driver.start(prompt, greedy(8))
    with monkeypatch.context() as patch:
        patch.setattr(driver.core._sampler, "create_state", _break)
        context = driver.context()
        driver.append(context, prompt)
        failed = driver.generate(context, greedy(8))
    again = driver.generate(context, greedy(8))
    driver.run()
    assert isinstance(failed.error, EngineFault)
    assert running.token_ids == again.token_ids
    assert len(running.token_ids) == 8


def test_a_fault_in_an_operation_fails_its_context_alone(
    driver: Driver, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = driver.start(prompt, greedy(8))
    context = driver.context()
    driver.append(context, prompt)
    with monkeypatch.context() as patch:
        patch.setattr(driver.core._memory, "fork", _break)
        child = driver.fork(context)
    orphan = driver.generate(child, greedy(2))
    other = driver.generate(context, greedy(2))
    driver.run()
    assert isinstance(other.error, EngineFault)
    assert orphan.is_over
    assert len(running.token_ids) == 8


def test_a_fault_that_corrupts_the_memory_ends_the_engine(
    driver: Driver, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = driver.context()
    driver.append(context, prompt)
    driver.run()

    def corrupt(*_: object) -> None:
        driver.core._memory._tables.pool._free.pop()
        raise RuntimeError("half done")

    monkeypatch.setattr(driver.core._memory, "truncate", corrupt)
    with pytest.raises(AssertionError):
        driver.truncate(context, 5)


@pytest.mark.parametrize("name", ["row", "take"])
def test_a_fault_at_one_row_fails_that_row(
    driver: Driver, prompt: list[int], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    options = replace(greedy(6), logprobs=0 if name == "row" else None)
    outputs = [driver.start(prompt, options) for _ in range(3)]
    while not all(output.token_ids for output in outputs):
        driver.step()
    broken = driver.core._contexts.all[1].generation
    whole = getattr(GenerationState, name)

    def fail(generation: GenerationState, *args: object) -> object:
        if generation is broken:
            raise RuntimeError("broken")
        return whole(generation, *args)

    monkeypatch.setattr(GenerationState, name, fail)
    driver.run()
    assert isinstance(outputs[1].error, EngineFault)
    assert [len(outputs[index].token_ids) for index in (0, 2)] == [6, 6]


def test_copies_of_a_failed_step_are_done(driver: Driver, prompt: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    alone = driver.start(prompt, greedy(10))
    driver.run()
    parent = driver.context()
    driver.append(parent, prompt)
    driver.run()
    child = driver.fork(parent)  # its last page is a copy that the failing step makes
    driver.start([5, 6, 7], greedy(3))
    with monkeypatch.context() as patch:
        patch.setattr(driver.core._runner, "run", _break)
        driver.step()
    driver.core._memory.clear_cache()
    output = driver.generate(child, greedy(10))
    driver.run()
    assert output.token_ids == alone.token_ids


def test_numbers_that_are_not_finite_reach_no_other_request(
    make_driver: MakeDriver, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"num_pages": 10, "max_num_batched_tokens": 32, "max_model_len": 150}
    driver = make_driver(can_draw=False, **limits)  # a model that draws: tests/engine/test_bursts.py
    alone = driver.start(prompt, greedy(10))
    driver.run()
    driver.core._memory.clear_cache()
    with monkeypatch.context() as patch:
        _poison_rows(driver, patch, lambda token: token == 77)
        bad = driver.start([*prompt[:20], 77, *range(100, 210)], greedy(4))
        good = driver.start(prompt, greedy(10))
        driver.run()
    assert isinstance(bad.error, EngineFault)
    assert good.token_ids == alone.token_ids
    for context in driver.core._contexts.all:
        driver.free(context.context_id)
    for layer in driver.core._runner._cache:
        assert unpack(layer.keys).isfinite().all()
        assert unpack(layer.values).isfinite().all()
    again = driver.start([*prompt[:20], 77, *range(100, 210)], greedy(4))
    driver.run()
    assert len(again.token_ids) == 4


def test_a_failed_context_computes_nothing_more(driver: Driver, prompt: list[int]) -> None:
    context = driver.context()
    driver.append(context, prompt)
    driver.truncate(context, len(prompt) + 1)
    driver.run()
    assert isinstance(driver.context_errors[context], InvalidRequest)
    assert driver.core.snapshot().prompt_tokens == 0


def test_a_long_chain_of_forks_behind_a_generation(driver: Driver, prompt: list[int]) -> None:
    root = driver.context()
    driver.append(root, prompt)
    driver.generate(root, greedy(3))
    child = root
    for _ in range(600):
        child = driver.fork(child)
    last = driver.generate(child, greedy(3))
    doomed = driver.context()
    driver.append(doomed, prompt)
    driver.generate(doomed, greedy(3))
    driver.truncate(doomed, 10_000)
    orphan = doomed
    for _ in range(600):
        orphan = driver.fork(orphan)
    lost = driver.generate(orphan, greedy(3))
    driver._check = False
    driver.run()
    assert len(last.token_ids) == 3
    assert isinstance(lost.error, InvalidRequest)
    driver.core.check()


def test_a_queued_generation_is_cancelled_and_what_follows_runs(driver: Driver, prompt: list[int]) -> None:
    context = driver.context(ContextSpec())
    driver.append(context, prompt)
    first = driver.generate(context, greedy(5))
    queued = driver.generate(context, greedy(5))
    driver.append(context, [300])
    last = driver.generate(context, greedy(5))
    driver.step()
    driver.cancel(queued)
    driver.step()
    assert queued.error is not None
    driver.run()
    assert last.finish is not None
    assert last.finish.usage.prompt_tokens == len(prompt) + 5 + 1
    assert len(first.token_ids) == len(last.token_ids) == 5

"""What the core does besides computing: order of operations, ends, failures, cancellation, limits."""

from __future__ import annotations

import pytest

from kea.engine.base import ContextSpec
from kea.engine.core import EngineCore
from kea.errors import Cancelled, ContextLengthExceeded, EngineFault, InvalidRequest
from kea.models import Tokenizer
from kea.types import FinishReason, GenerateOptions, Sampling, Stopping
from tests.engine.conftest import MakeDriver
from tests.engine.driver import Driver, greedy

PROMPT = "Once upon a time"


@pytest.fixture
def driver(make_driver: MakeDriver) -> Driver:
    return make_driver()


@pytest.fixture
def prompt(stories_tokenizer: Tokenizer) -> list[int]:
    return stories_tokenizer.encode(PROMPT)


def _num_free(core: EngineCore) -> int:
    memory = core.snapshot().memory
    return memory.num_free + memory.num_cached


def test_text_is_that_of_the_tokens(driver: Driver, prompt: list[int], stories_tokenizer: Tokenizer) -> None:
    output = driver.start(prompt, greedy(30))
    driver.run()
    assert PROMPT + output.text == stories_tokenizer.decode([*prompt, *output.token_ids])


def test_operations_behind_a_generation_wait_for_its_end(driver: Driver, prompt: list[int]) -> None:
    context = driver.context()
    driver.append(context, prompt)
    first = driver.generate(context, greedy(5))
    driver.append(context, [300, 301])
    second = driver.generate(context, greedy(5))
    child = driver.fork(context)
    third = driver.generate(child, greedy(5))
    driver.run()
    assert [len(o.token_ids) for o in (first, second, third)] == [5, 5, 5]
    assert second.finish is not None
    assert third.finish is not None
    assert second.finish.usage.prompt_tokens == len(prompt) + 5 + 2
    assert third.finish.usage.prompt_tokens == len(prompt) + 5 + 2 + 5


def test_stop_string_is_cut_from_text_and_context(
    driver: Driver, prompt: list[int], stories_tokenizer: Tokenizer
) -> None:
    whole = driver.start(prompt, greedy(40))
    driver.run()
    stop = whole.text[23:26]
    shown = whole.text[: whole.text.index(stop)]
    context = driver.context()
    driver.append(context, prompt)
    output = driver.generate(context, greedy(40, stop=(stop,)))
    driver.run()
    assert output.text == shown
    assert output.finish is not None
    assert output.finish.reason is FinishReason.STOP
    assert output.finish.stop == stop
    kept = output.finish.context_len - len(prompt)
    kept_text = stories_tokenizer.decode([*prompt, *output.token_ids[:kept]])
    assert kept_text + output.finish.residual == PROMPT + shown


def test_stop_token_ends_the_output_unseen(driver: Driver, prompt: list[int]) -> None:
    whole = driver.start(prompt, greedy(20))
    driver.run()
    stop = whole.token_ids[7]
    first = whole.token_ids.index(stop)
    output = driver.start(prompt, GenerateOptions(Stopping(20, stop_token_ids=(stop,)), Sampling(temperature=0.0)))
    driver.run()
    assert output.finish is not None
    assert output.finish.stop == stop
    assert output.finish.context_len == len(prompt) + first
    late = driver.start(
        prompt, GenerateOptions(Stopping(20, min_tokens=first + 3, stop_token_ids=(stop,)), Sampling(temperature=0.0))
    )
    driver.run()
    assert stop not in late.token_ids[: first + 3]


def test_cancel_ends_at_the_next_step_and_keeps_the_context(driver: Driver, prompt: list[int]) -> None:
    context = driver.context()
    driver.append(context, prompt)
    output = driver.generate(context, greedy(100))
    for _ in range(5):
        driver.step()
    num_tokens = len(output.token_ids)
    driver.cancel(output)
    driver.run()
    assert output.finish is not None
    assert output.finish.reason is FinishReason.CANCELLED
    assert len(output.token_ids) == num_tokens
    assert output.finish.context_len == len(prompt) + num_tokens
    more = driver.generate(context, greedy(3))
    driver.run()
    assert len(more.token_ids) == 3


def test_freeing_gives_every_page_back_at_once(driver: Driver, prompt: list[int]) -> None:
    before = _num_free(driver.core)
    contexts = []
    outputs = []
    for _ in range(4):
        context = driver.context()
        driver.append(context, prompt)
        outputs.append(driver.generate(context, greedy(200)))
        contexts.append(context)
    while len(outputs[0].token_ids) < 30:
        driver.step()
    assert _num_free(driver.core) < before
    for context in contexts:
        driver.free(context)
    assert _num_free(driver.core) == before
    driver.run()
    assert all(isinstance(output.error, Cancelled) for output in outputs)
    assert driver.core.snapshot().num_contexts == 0


def test_an_operation_that_cannot_be_done_fails_what_follows(driver: Driver, prompt: list[int]) -> None:
    context = driver.context()
    driver.append(context, prompt)
    driver.truncate(context, len(prompt) + 1)
    output = driver.generate(context, greedy(3))
    driver.run()
    assert isinstance(output.error, InvalidRequest)
    assert isinstance(driver.context_errors[context], InvalidRequest)
    orphan = driver.fork(context)
    other = driver.generate(orphan, greedy(3))
    driver.run()
    assert isinstance(other.error, InvalidRequest)


@pytest.mark.parametrize("token_ids", [[512], [-1], [5, 100_000]])
def test_token_ids_outside_the_vocabulary_are_refused(driver: Driver, token_ids: list[int]) -> None:
    output = driver.start(token_ids, greedy(3))
    driver.run()
    assert isinstance(output.error, InvalidRequest)
    assert "0 to 511" in str(output.error)


def test_an_empty_context_cannot_generate(driver: Driver) -> None:
    output = driver.generate(driver.context(), greedy(3))
    driver.run()
    assert isinstance(output.error, InvalidRequest)


def test_a_prompt_that_is_too_long_is_refused_with_both_lengths(driver: Driver) -> None:
    output = driver.start([5] * 513, greedy(3))
    driver.run()
    assert isinstance(output.error, ContextLengthExceeded)
    assert "513" in str(output.error)
    assert "512" in str(output.error)


def test_an_output_ends_where_the_context_is_full(driver: Driver) -> None:
    output = driver.start([5] * 500, greedy(100))
    driver.run()
    assert output.finish is not None
    assert output.finish.reason is FinishReason.LENGTH
    assert len(output.token_ids) == 12


def test_concurrent_equal_prompts_are_computed_once(driver: Driver, stories_tokenizer: Tokenizer) -> None:
    prompt = stories_tokenizer.encode("The dog ran to the big tree and saw a cat. The cat was sad because " * 3)
    outputs = [driver.start(prompt, greedy(4)) for _ in range(8)]
    driver.run()
    computed = driver.core.snapshot().prompt_tokens
    assert computed < len(prompt) + 8 * 16
    assert len({tuple(output.token_ids) for output in outputs}) == 1


def test_tenants_share_no_pages(driver: Driver, stories_tokenizer: Tokenizer) -> None:
    prompt = stories_tokenizer.encode("The dog ran to the big tree and saw a cat. The cat was sad because")
    for tenant in ("a", "b", "a"):
        output = driver.start(prompt, greedy(2), ContextSpec(tenant=tenant))
        driver.run()
        assert output.finish is not None
        cached = output.finish.usage.cached_tokens
    assert cached >= 16
    assert driver.core.snapshot().memory.hit_tokens == cached


def test_smaller_priority_is_served_first_and_preempts(make_driver: MakeDriver, prompt: list[int]) -> None:
    driver = make_driver(max_num_seqs=2)
    late = [driver.start(prompt, greedy(50), ContextSpec(priority=5)) for _ in range(4)]
    for _ in range(10):
        driver.step()
    urgent = driver.start(prompt, greedy(5), ContextSpec(priority=0))
    for _ in range(8):
        driver.step()
    assert urgent.finish is not None
    assert all(output.finish is None for output in late)
    driver.run()
    assert [len(output.token_ids) for output in late] == [50] * 4
    assert len({tuple(output.token_ids) for output in late}) == 1


def test_a_fault_of_the_model_ends_the_step_not_the_engine(
    driver: Driver, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = driver.start(prompt, greedy(20))
    for _ in range(3):
        driver.step()

    def fail(*_: object) -> None:
        raise RuntimeError("the accelerator is on fire")

    with monkeypatch.context() as patch:
        for name in ("run", "decode"):
            patch.setattr(driver.core._runner, name, fail)
        driver.step()
    assert isinstance(running.error, EngineFault)
    assert "on fire" in str(running.error)
    after = driver.start(prompt, greedy(5))
    driver.run()
    assert len(after.token_ids) == 5


def test_usage_adds_up(driver: Driver, prompt: list[int]) -> None:
    output = driver.start(prompt, greedy(10))
    driver.run()
    assert output.finish is not None
    usage = output.finish.usage
    assert (usage.prompt_tokens, usage.output_tokens, usage.cached_tokens) == (len(prompt), 10, 0)
    assert usage.waiting_s >= 0
    assert usage.prefill_s > 0
    assert usage.decode_s > 0
    snapshot = driver.core.snapshot()
    assert snapshot.generation_tokens == 10
    assert snapshot.num_finished == {"length": 1}

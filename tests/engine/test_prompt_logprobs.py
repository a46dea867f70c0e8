"""Log-probabilities of prompts equal transformers', whatever happened to the context before they were asked for."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from transformers import PreTrainedModel

from kea.engine import batcher
from kea.engine.base import ContextSpec
from kea.models import Tokenizer
from tests.engine.conftest import MakeDriver
from tests.engine.driver import Output, greedy
from tests.engine.oracle import reference_logits

TEXT = "One day, a girl named Sue found a red box in the garden. She wanted to open it, but her mom said no. Sue"
SCORED = ContextSpec(prompt_logprobs=2)


@pytest.fixture
def prompt(stories_tokenizer: Tokenizer) -> list[int]:
    return stories_tokenizer.encode(TEXT)


def _check(model: PreTrainedModel, prompt: Sequence[int], output: Output) -> None:
    expected = reference_logits(model, list(prompt)).log_softmax(-1)
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(prompt)
    for position, entry in enumerate(output.prompt_logprobs[1:], start=1):
        assert entry is not None
        assert entry.token_id == prompt[position]
        assert abs(entry.logprob - float(expected[position - 1, prompt[position]])) < 1e-4


@pytest.mark.parametrize("runs_before", [True, False])
def test_of_forks(
    make_driver: MakeDriver, prompt: list[int], stories_reference: PreTrainedModel, runs_before: bool
) -> None:
    driver = make_driver()
    parent = driver.context(SCORED)
    driver.append(parent, prompt)
    if runs_before:
        driver.run()
    children = [driver.fork(parent) for _ in range(3)]
    outputs = [driver.generate(context, greedy(3)) for context in (parent, *children)]
    driver.run()
    for output in outputs:
        assert output.error is None
        _check(stories_reference, prompt, output)


def test_of_a_fork_behind_the_report(make_driver: MakeDriver, prompt: list[int]) -> None:
    driver = make_driver()
    parent = driver.context(SCORED)
    driver.append(parent, prompt)
    driver.generate(parent, greedy(3))
    driver.run()
    output = driver.generate(driver.fork(parent), greedy(3))
    driver.run()
    assert len(output.token_ids) == 3
    assert output.prompt_logprobs is None


@pytest.mark.parametrize("operation", ["truncate", "fork"])
def test_of_a_prompt_that_goes_on_otherwise(
    make_driver: MakeDriver, prompt: list[int], stories_reference: PreTrainedModel, operation: str
) -> None:
    driver = make_driver()
    context = driver.context(SCORED)
    driver.append(context, prompt)
    driver.run()
    if operation == "truncate":
        driver.truncate(context, 20)
    else:
        context = driver.fork(context, 20)
    driver.append(context, [300, 301, 302])
    output = driver.generate(context, greedy(3))
    driver.run()
    _check(stories_reference, [*prompt[:20], 300, 301, 302], output)


def test_of_preempted_prompts(make_driver: MakeDriver, prompt: list[int], stories_reference: PreTrainedModel) -> None:
    driver = make_driver(12, max_model_len=140, max_num_batched_tokens=20)
    prompts = [[1, 10 + index, *prompt[2:]] for index in range(4)]
    outputs = [driver.start(prompt, greedy(60), SCORED) for prompt in prompts]
    driver.run()
    assert driver.core.snapshot().num_preemptions > 0
    for tokens, output in zip(prompts, outputs, strict=True):
        _check(stories_reference, tokens, output)


def test_dropped_tokens_have_none(make_driver: MakeDriver, prompt: list[int]) -> None:
    driver = make_driver()
    context = driver.context(SCORED)
    driver.append(context, prompt)
    driver.drop(context, 5, 9)
    output = driver.generate(context, greedy(3))
    driver.run()
    assert output.prompt_logprobs is not None
    missing = [position for position, entry in enumerate(output.prompt_logprobs) if entry is None]
    assert missing == [0, 6, 7, 8, 9]


def test_chunks_of_scored_rows_are_bounded(
    make_driver: MakeDriver, prompt: list[int], stories_reference: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "MAX_SCORED_TOKENS", 8)
    driver = make_driver()
    output = driver.start(prompt, greedy(1), SCORED)
    driver.run()
    assert driver.core.snapshot().num_steps == -(-len(prompt) // 8)
    _check(stories_reference, prompt, output)

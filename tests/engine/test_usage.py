"""The usage that a generation reports, for every way in which its prompt came to be computed."""

from __future__ import annotations

import pytest

from kea.models import Tokenizer
from kea.types import Usage
from tests.engine.conftest import MakeDriver
from tests.engine.driver import Driver, Output, greedy

TEXT = "One day, a girl named Sue found a red box in the garden. She wanted to open it, but her mom said no. Sue"


@pytest.fixture
def driver(make_driver: MakeDriver) -> Driver:
    return make_driver()


@pytest.fixture
def prompt(stories_tokenizer: Tokenizer) -> list[int]:
    return stories_tokenizer.encode(TEXT)


def _usage(output: Output) -> Usage:
    assert output.finish is not None
    return output.finish.usage


def test_a_prompt_computed_ahead_is_not_cached(driver: Driver, prompt: list[int]) -> None:
    context = driver.context()
    driver.append(context, prompt)
    driver.run()
    output = driver.generate(context, greedy(3))
    driver.run()
    assert _usage(output).cached_tokens == 0


def test_a_second_output_finds_the_first_one_computed(driver: Driver, prompt: list[int]) -> None:
    context = driver.context()
    driver.append(context, prompt)
    driver.generate(context, greedy(4))
    driver.append(context, [300, 301, 302])
    output = driver.generate(context, greedy(3))
    driver.run()
    usage = _usage(output)
    assert usage.prompt_tokens == len(prompt) + 4 + 3
    assert usage.cached_tokens == len(prompt) + 3  # the last token of an output is computed with what follows it
    assert usage.waiting_s < 0.1


def test_what_a_fork_inherits_is_cached(driver: Driver, prompt: list[int]) -> None:
    parent = driver.context()
    driver.append(parent, prompt)
    driver.generate(parent, greedy(4))
    driver.run()
    output = driver.generate(driver.fork(parent, 20), greedy(3))
    driver.run()
    assert _usage(output).cached_tokens == 19


def test_what_a_preemption_lost_and_found_is_counted_once(make_driver: MakeDriver, prompt: list[int]) -> None:
    driver = make_driver(12, max_model_len=140)
    outputs = [driver.start([1, 10 + index, *prompt[2:]], greedy(60)) for index in range(4)]
    driver.run()
    assert sum(_usage(output).num_preemptions for output in outputs) > 0
    for output in outputs:
        assert _usage(output).cached_tokens <= 1  # the first token's page begins as the others' do


def test_a_prefix_that_was_lost_before_it_was_used_is_not_cached(driver: Driver, prompt: list[int]) -> None:
    prompt = prompt[:33]  # two pages and the token that is always left
    driver.start(prompt, greedy(1))
    driver.run()
    driver.free(driver.core._contexts.all[0].context_id)
    context = driver.context()
    driver.append(context, prompt)
    driver.run()  # finds the prefix
    state = driver.core._contexts._contexts[context]
    assert state.pages.num_computed == len(prompt) - 1
    driver.core._memory.release(state.pages)
    driver.core._memory.clear_cache()
    output = driver.generate(context, greedy(2))
    driver.run()
    assert _usage(output).cached_tokens == 0

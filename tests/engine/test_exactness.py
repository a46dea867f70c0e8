"""Outputs equal transformers', whatever the batch, the chunks, the forks, the prefix hits and the preemptions."""

from __future__ import annotations

import random

import pytest
from transformers import PreTrainedModel

from kea.engine.base import ContextSpec
from kea.models import Tokenizer
from kea.types import GenerateOptions, Sampling, Stopping
from tests.engine.conftest import MakeDriver
from tests.engine.driver import greedy
from tests.engine.oracle import compare_greedy, dropped_logits, reference_logits

TEXTS = (
    "Once upon a time",
    "Lily and Ben were friends. They",
    "The dog ran to the big tree and saw a cat. The cat was sad because",
    "One day, a girl named Sue found a red box in the garden. She wanted to open it, but her mom said no. Sue",
    "Tom",
)
MAX_ERROR = 1e-4


@pytest.mark.parametrize("budget", [1, 3, 16, 17, 64, 2048])
def test_mixed_batch_equals_each_request_alone(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, stories_reference: PreTrainedModel, budget: int
) -> None:
    driver = make_driver(max_num_batched_tokens=budget)
    prompts = [stories_tokenizer.encode(text) for text in TEXTS]
    options = [greedy(20 + 7 * index) for index in range(len(prompts))]
    options = [GenerateOptions(o.stopping, o.sampling, logprobs=2) for o in options]
    outputs = [driver.start(prompt, option) for prompt, option in zip(prompts, options, strict=True)]
    driver.run()
    for prompt, output in zip(prompts, outputs, strict=True):
        found = compare_greedy(
            stories_reference, prompt, output.token_ids, [entry.logprob for entry in output.logprobs]
        )
        assert found.max_logprob_error < MAX_ERROR
        assert len(output.logprobs) == len(output.token_ids)


def test_greedy_output_is_what_transformers_generates(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, stories_reference: PreTrainedModel
) -> None:
    import torch

    driver = make_driver()
    prompt = stories_tokenizer.encode(TEXTS[3])
    output = driver.start(prompt, greedy(60))
    driver.run()
    expected = stories_reference.generate(
        torch.tensor([prompt]), max_new_tokens=60, min_new_tokens=60, do_sample=False, eos_token_id=None
    )
    assert output.token_ids == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("num_pages", [9, 12, 20])
def test_preempted_requests_are_recomputed_exactly(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, stories_reference: PreTrainedModel, num_pages: int
) -> None:
    driver = make_driver(num_pages, max_model_len=140, max_num_batched_tokens=48)
    prompts = [stories_tokenizer.encode(text) for text in TEXTS * 3]
    outputs = [driver.start(prompt, greedy(60 + index)) for index, prompt in enumerate(prompts)]
    driver.run()
    assert driver.core.snapshot().num_preemptions > 0
    for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        assert len(output.token_ids) == 60 + index
        compare_greedy(stories_reference, prompt, output.token_ids)


def test_forks_at_every_token_are_exact(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, stories_reference: PreTrainedModel
) -> None:
    driver = make_driver()
    prompt = stories_tokenizer.encode(TEXTS[3])
    parent = driver.context()
    driver.append(parent, prompt)
    first = driver.generate(parent, greedy(12))
    driver.run()
    whole = [*prompt, *first.token_ids]
    forks = {at: driver.fork(parent, at) for at in range(1, len(whole) + 1)}
    outputs = {at: driver.generate(child, greedy(4)) for at, child in forks.items()}
    driver.run()
    for at, output in outputs.items():
        compare_greedy(stories_reference, whole[:at], output.token_ids)
    again = driver.generate(parent, greedy(5))
    driver.run()
    compare_greedy(stories_reference, whole, again.token_ids)


def test_prefix_hits_at_any_token_are_exact(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, stories_reference: PreTrainedModel
) -> None:
    driver = make_driver(page_tokens=8)
    base = stories_tokenizer.encode(TEXTS[3])
    driver.start(base, greedy(1))
    driver.run()
    for length in range(2, len(base)):
        changed = [*base[:length], 300, 301, 302]
        output = driver.start(changed, greedy(3))
        driver.run()
        compare_greedy(stories_reference, changed, output.token_ids)
        assert output.finish is not None
        assert output.finish.usage.cached_tokens >= length - length % 8


def test_truncated_context_goes_on_exactly(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, stories_reference: PreTrainedModel
) -> None:
    driver = make_driver()
    tokens = stories_tokenizer.encode(TEXTS[3])
    rng = random.Random(3)
    context = driver.context()
    driver.append(context, tokens)
    for _ in range(12):
        driver.run()
        tokens = tokens[: rng.randrange(1, len(tokens) + 1)]
        driver.truncate(context, len(tokens))
        more = [rng.randrange(3, 512) for _ in range(rng.randrange(0, 20))]
        driver.append(context, more)
        tokens = [*tokens, *more]
        output = driver.generate(context, greedy(6))
        driver.run()
        compare_greedy(stories_reference, tokens, output.token_ids)
        tokens = [*tokens, *output.token_ids]


@pytest.mark.parametrize("num_pages", [64, 13])
def test_dropped_tokens_are_seen_by_nobody_later(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, stories_reference: PreTrainedModel, num_pages: int
) -> None:
    driver = make_driver(num_pages, max_model_len=200)
    tokens = [*stories_tokenizer.encode(TEXTS[3]), *stories_tokenizer.encode_continuation(" " + TEXTS[2])]
    start, stop = 7, 41
    context = driver.context()
    driver.append(context, tokens)
    driver.run()
    at = len(tokens) - 1  # what was computed when the span was dropped
    driver.drop(context, start, stop)
    more = stories_tokenizer.encode_continuation(" They went")
    driver.append(context, more)
    output = driver.generate(context, greedy(40))
    others = [driver.start(stories_tokenizer.encode(text), greedy(120)) for text in TEXTS] if num_pages < 20 else []
    driver.run()
    whole = [*tokens, *more]
    logits = dropped_logits(stories_reference, [*whole, *output.token_ids], start, stop, at)
    assert output.token_ids == logits[len(whole) - 1 : -1].argmax(-1).tolist()
    plain = reference_logits(stories_reference, [*whole, *output.token_ids])
    assert not plain[len(whole) - 1 :].allclose(logits[len(whole) - 1 :], atol=1e-3)
    assert all(other.finish is not None for other in others)


def test_prompt_logprobs_are_transformers(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, stories_reference: PreTrainedModel
) -> None:
    driver = make_driver(max_num_batched_tokens=10)
    prompt = stories_tokenizer.encode(TEXTS[3])
    driver.start(prompt, greedy(1))  # its pages must not be used: their logits are gone
    driver.run()
    output = driver.start(prompt, greedy(3), ContextSpec(prompt_logprobs=2))
    driver.run()
    expected = reference_logits(stories_reference, prompt).log_softmax(-1)
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(prompt)
    for position, entry in enumerate(output.prompt_logprobs[1:], start=1):
        assert entry is not None
        assert entry.token_id == prompt[position]
        assert abs(entry.logprob - float(expected[position - 1, prompt[position]])) < MAX_ERROR
        assert len(entry.top) == 2


def test_a_seed_draws_the_same_whatever_the_batch(make_driver: MakeDriver, stories_tokenizer: Tokenizer) -> None:
    options = GenerateOptions(Stopping(40, ignore_eos=True), Sampling(temperature=0.9, top_p=0.95, seed=11))
    prompt = stories_tokenizer.encode(TEXTS[1])
    alone = make_driver()
    expected = alone.start(prompt, options)
    alone.run()
    crowded = make_driver(max_num_batched_tokens=9)
    others = [crowded.start(stories_tokenizer.encode(text), greedy(30)) for text in TEXTS * 2]
    output = crowded.start(prompt, options)
    crowded.run()
    assert output.token_ids == expected.token_ids
    assert all(other.finish is not None for other in others)

"""Prompt lookup: what is written, reported and kept is the same with and without guesses, whatever else is in play."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from kea.engine.base import ContextSpec
from kea.engine.config import DecodingConfig
from kea.engine.guessing import GuessBudget, Payoff
from kea.engine.speculation import MAX_PLACES, PromptLookup
from kea.errors import EngineFault, InvalidRequest
from kea.models import Tokenizer
from kea.types import Constraint, Finish, FinishReason, GenerateOptions, Sampling, Speculation, Stopping
from tests.engine.conftest import MakeDriver
from tests.engine.driver import Driver, Output, greedy
from tests.engine.oracle import compare_greedy

GUESS = Speculation(6, 1, 3)
STORY = "One day, a girl named Sue found a red box in the garden. She wanted to open it, but her mom said no. "
TEXTS = (
    STORY + STORY + "One day, a girl",
    "Once upon a time",
    "Tom and Lily. Tom and Lily. Tom and",
    "The dog ran to the big tree and saw a cat. The dog ran",
)
Start = Callable[[Driver, Tokenizer], Sequence[Output]]


@pytest.fixture(autouse=True)
def every_guess_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it does not pay, so that many are wrong."""
    monkeypatch.setattr(GuessBudget, "take", lambda *given: given[-1])
    monkeypatch.setattr(Payoff, "pays", lambda *_: True)


def _run(make_driver: MakeDriver, tokenizer: Tokenizer, start: Start, **fields: object) -> tuple[Driver, list[Output]]:
    driver = make_driver(**fields)
    outputs = list(start(driver, tokenizer))
    driver.run()
    return driver, outputs


def _timeless(finish: Finish) -> Finish:
    return replace(finish, usage=replace(finish.usage, waiting_s=0.0, prefill_s=0.0, decode_s=0.0))


def _compare(
    make_driver: MakeDriver, tokenizer: Tokenizer, start: Start, **fields: object
) -> tuple[Driver, list[Output], list[Output]]:
    """Run the same without guesses, with them now and then, and with them; compare all that can be seen.
    Return the last run, with the first one's outputs and its own.
    """
    decoding = DecodingConfig(speculation=GUESS)
    plain, expected = _run(make_driver, tokenizer, start, **fields)
    assert plain.core.snapshot().num_draft_tokens == 0
    with pytest.MonkeyPatch.context() as patch:
        turns = itertools.cycle((True, True, False, True, False))
        patch.setattr(Payoff, "pays", lambda *_: next(turns))
        changing, found = _run(make_driver, tokenizer, start, decoding=decoding, **fields)
        _hold_equal(plain, expected, changing, found)
    guessing, found = _run(make_driver, tokenizer, start, decoding=decoding, **fields)
    _hold_equal(plain, expected, guessing, found)
    return guessing, expected, found


def _hold_equal(plain: Driver, expected: list[Output], guessing: Driver, found: list[Output]) -> None:
    assert guessing.core.snapshot().num_draft_tokens > 0
    for one, other in zip(expected, found, strict=True):
        assert other.token_ids == one.token_ids
        assert other.text == one.text
        assert [e.token_id for e in other.logprobs] == [e.token_id for e in one.logprobs]
        assert [e.logprob for e in other.logprobs] == pytest.approx([e.logprob for e in one.logprobs], abs=1e-4)
        assert (other.finish is None) == (one.finish is None)
        if one.finish is not None and other.finish is not None:
            assert _timeless(other.finish) == _timeless(one.finish)
    plain_tokens, tokens = (driver.core.snapshot().generation_tokens for driver in (plain, guessing))
    assert tokens == plain_tokens
    assert guessing.core.snapshot().prompt_tokens == plain.core.snapshot().prompt_tokens


def test_a_repetition_is_written_in_fewer_steps_and_stays_what_transformers_writes(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, stories_reference: PreTrainedModel
) -> None:
    prompt = stories_tokenizer.encode(TEXTS[0])
    driver, _, found = _compare(make_driver, stories_tokenizer, lambda driver, _: [driver.start(prompt, greedy(60))])
    compare_greedy(stories_reference, prompt, found[0].token_ids)
    snapshot = driver.core.snapshot()
    assert snapshot.num_accepted_tokens > 5
    assert snapshot.num_steps <= 61 - snapshot.num_accepted_tokens


@pytest.mark.parametrize("budget", [5, 17, 2048])
def test_a_batch_of_guessing_and_other_requests_is_exact(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, stories_reference: PreTrainedModel, budget: int
) -> None:
    def start(driver: Driver, tokenizer: Tokenizer) -> list[Output]:
        options = [GenerateOptions(o.stopping, o.sampling, logprobs=2) for o in map(greedy, range(20, 48, 7))]
        return [driver.start(tokenizer.encode(text), o) for text, o in zip(TEXTS, options, strict=True)]

    _, _, found = _compare(make_driver, stories_tokenizer, start, max_num_batched_tokens=budget)
    for text, output in zip(TEXTS, found, strict=True):
        compare_greedy(stories_reference, stories_tokenizer.encode(text), output.token_ids)


SAMPLINGS = (
    Sampling(temperature=0.3, seed=5),
    Sampling(temperature=0.8, top_p=0.9, seed=6),
    Sampling(temperature=0.8, top_k=20, min_p=0.02, seed=7),
    Sampling(temperature=0.0, presence_penalty=0.4, frequency_penalty=0.3, repetition_penalty=1.2),
    Sampling(temperature=0.5, logit_bias={300: 6.0, 263: -100.0}, frequency_penalty=0.5, seed=8),
)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=range(len(SAMPLINGS)))
def test_a_seed_and_penalties_give_the_same_tokens(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, sampling: Sampling
) -> None:
    def start(driver: Driver, tokenizer: Tokenizer) -> list[Output]:
        options = GenerateOptions(Stopping(50, min_tokens=10), sampling, logprobs=1)
        return [driver.start(tokenizer.encode(text), options) for text in TEXTS]

    driver, _, _ = _compare(make_driver, stories_tokenizer, start)
    assert driver.core.snapshot().num_accepted_tokens > 0


@pytest.mark.parametrize(
    "stopping",
    [
        Stopping(60, stop=("garden", "mom said")),
        Stopping(60, min_tokens=25, stop=("box",)),
        Stopping(7, ignore_eos=True),
        Stopping(1),
        Stopping(60, stop_token_ids=(432,)),
    ],
    ids=range(5),
)
def test_an_output_ends_at_the_same_token_and_keeps_the_same(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, stopping: Stopping
) -> None:
    prompts = [stories_tokenizer.encode(text) for text in TEXTS]
    kept: list[list[tuple[int, int]]] = []
    goes_on: list[list[int]] = []
    for speculation in (None, GUESS):
        driver = make_driver(decoding=DecodingConfig(speculation=speculation))
        contexts = [driver.context() for _ in prompts]
        for context, prompt in zip(contexts, prompts, strict=True):
            driver.append(context, prompt)
            driver.generate(context, GenerateOptions(stopping, Sampling(temperature=0.0)))
        driver.run()
        states = [driver.core._contexts._contexts[context] for context in contexts]
        kept.append([(len(state.tokens), state.pages.num_computed) for state in states])
        more = [driver.generate(context, greedy(5)) for context in contexts]
        driver.run()
        goes_on.append([token_id for output in more for token_id in output.token_ids])
    assert kept[0] == kept[1]
    assert goes_on[0] == goes_on[1]


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint("regex", "(Tom and Lily[.] ){3,5}The end"),
        Constraint("choice", '["One day, a girl named Sue", "One day, a boy"]'),
        Constraint("json_schema", '{"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}}}'),
    ],
    ids=lambda constraint: constraint.kind,
)
def test_a_constraint_holds_and_gives_the_same_output(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, constraint: Constraint
) -> None:
    def start(driver: Driver, tokenizer: Tokenizer) -> list[Output]:
        options = GenerateOptions(Stopping(60), Sampling(temperature=0.7, seed=3), constraint)
        return [driver.start(tokenizer.encode(text), options) for text in TEXTS]

    _, _, found = _compare(make_driver, stories_tokenizer, start)
    assert all(output.finish is not None for output in found)


@pytest.mark.parametrize("num_pages", [10, 12])
def test_preempted_requests_that_guess_are_exact(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, stories_reference: PreTrainedModel, num_pages: int
) -> None:
    driver = make_driver(
        num_pages, max_model_len=160, max_num_batched_tokens=48, decoding=DecodingConfig(speculation=GUESS)
    )
    prompts = [stories_tokenizer.encode(text) for text in TEXTS[1:] * 4]
    outputs = [driver.start(prompt, greedy(60 + index)) for index, prompt in enumerate(prompts)]
    driver.run()
    snapshot = driver.core.snapshot()
    assert snapshot.num_preemptions > 0
    assert 0 < snapshot.num_accepted_tokens < snapshot.num_draft_tokens
    for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        assert len(output.token_ids) == 60 + index
        compare_greedy(stories_reference, prompt, output.token_ids)


def test_rejected_guesses_leave_nothing_in_the_prefix_tree(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, stories_reference: PreTrainedModel
) -> None:
    driver = make_driver(page_tokens=4, decoding=DecodingConfig(speculation=GUESS))
    prompt = stories_tokenizer.encode(TEXTS[0])
    first = driver.start(prompt, greedy(80))
    driver.run()
    snapshot = driver.core.snapshot()
    assert snapshot.num_accepted_tokens < snapshot.num_draft_tokens
    for length in range(1, len(first.token_ids), 3):
        again = driver.start([*prompt, *first.token_ids[:length], 300, 301], greedy(3))
        driver.run()
        assert again.finish is not None
        assert again.finish.usage.cached_tokens >= len(prompt) + length - 4
        compare_greedy(stories_reference, [*prompt, *first.token_ids[:length], 300, 301], again.token_ids)


def test_a_request_may_ask_for_guesses_and_against_them(make_driver: MakeDriver, stories_tokenizer: Tokenizer) -> None:
    prompt = stories_tokenizer.encode(TEXTS[0])
    asking, refusing = (replace(greedy(20), speculation=s) for s in (GUESS, Speculation(0)))
    driver = make_driver()
    driver.start(prompt, asking)
    driver.run()
    assert driver.core.snapshot().num_draft_tokens > 0
    driver = make_driver(decoding=DecodingConfig(speculation=GUESS))
    driver.start(prompt, refusing)
    driver.run()
    assert driver.core.snapshot().num_draft_tokens == 0


def test_a_drop_hides_its_span_from_guesses_too(make_driver: MakeDriver, stories_tokenizer: Tokenizer) -> None:
    tokens = stories_tokenizer.encode(TEXTS[0])
    written = []
    for speculation in (Speculation(0), GUESS):
        driver = make_driver(14, max_model_len=200, decoding=DecodingConfig(speculation=speculation))
        context = driver.context()
        driver.append(context, tokens)
        driver.run()
        driver.drop(context, 5, 30)
        output = driver.generate(context, greedy(50))
        others = [driver.start(stories_tokenizer.encode(text), greedy(100)) for text in TEXTS[1:]]
        driver.run()
        assert all(other.finish is not None for other in others)
        written.append(output.token_ids)
    assert written[0] == written[1]


def test_a_chunk_of_a_step_carries_all_its_tokens(make_driver: MakeDriver, stories_tokenizer: Tokenizer) -> None:
    driver = make_driver(decoding=DecodingConfig(speculation=GUESS))
    output = driver.start(stories_tokenizer.encode(TEXTS[0]), greedy(40))
    lengths = []
    while not output.is_over:
        before = len(output.token_ids)
        driver.step()
        lengths.append(len(output.token_ids) - before)
    assert max(lengths) > 1
    assert sum(lengths) == 40


def test_a_fault_behind_an_accepted_guess_ends_that_request_alone(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = make_driver(decoding=DecodingConfig(speculation=GUESS))
    guessing = driver.start(stories_tokenizer.encode(TEXTS[0]), greedy(40))
    other = driver.start(stories_tokenizer.encode(TEXTS[1]), replace(greedy(40), speculation=Speculation(0)))
    draw = driver.core._computer._draw

    def fail(logits: object, draws: Sequence[tuple[object, int]]) -> object:
        if len(logits) > 2 and len(draws) == 1:  # type: ignore[arg-type]
            raise RuntimeError("no such luck")
        return draw(logits, draws)  # type: ignore[arg-type]

    monkeypatch.setattr(driver.core._computer, "_draw", fail)
    driver.run()
    assert isinstance(guessing.error, EngineFault)
    assert guessing.token_ids, "what was drawn before the fault was not told"
    assert len(other.token_ids) == 40


def test_prompt_logprobs_and_guesses_go_together(make_driver: MakeDriver, stories_tokenizer: Tokenizer) -> None:
    def start(driver: Driver, tokenizer: Tokenizer) -> list[Output]:
        return [driver.start(tokenizer.encode(TEXTS[0]), greedy(30), ContextSpec(prompt_logprobs=1))]

    _, expected, found = _compare(make_driver, stories_tokenizer, start)
    assert expected[0].prompt_logprobs is not None
    assert found[0].prompt_logprobs is not None
    assert len(found[0].prompt_logprobs) == len(expected[0].prompt_logprobs)


def test_a_cancelled_output_keeps_what_was_told(make_driver: MakeDriver, stories_tokenizer: Tokenizer) -> None:
    driver = make_driver(decoding=DecodingConfig(speculation=GUESS))
    prompt = stories_tokenizer.encode(TEXTS[0])
    context = driver.context()
    driver.append(context, prompt)
    output = driver.generate(context, greedy(60))
    for _ in range(6):
        driver.step()
    driver.cancel(output)
    driver.run()
    assert output.finish is not None
    assert output.finish.reason is FinishReason.CANCELLED
    assert output.finish.context_len == len(prompt) + len(output.token_ids)


# The parts


def naive_guesses(tokens: Sequence[int], speculation: Speculation) -> list[int]:
    for length in range(speculation.prompt_lookup_max, speculation.prompt_lookup_min - 1, -1):
        for place in range(len(tokens) - 1, length - 1, -1):
            if list(tokens[place - length : place]) == list(tokens[-length:]):
                endless = list(tokens[place:])
                while len(endless) < speculation.num_speculative_tokens:
                    endless.append(endless[len(endless) - (len(tokens) - place)])
                return endless[: speculation.num_speculative_tokens]
    return []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 3), st.integers(0, 2))
def test_guesses_are_those_of_a_plain_search(tokens: list[int], least: int, more: int) -> None:
    speculation = Speculation(5, least, least + more)
    lookup = PromptLookup(speculation)
    for length in range(1, len(tokens) + 1):
        guesses = lookup.guess(tokens[:length])
        grams = [tuple(tokens[place - least : place]) for place in range(least, length)]
        if grams.count(tuple(tokens[length - least : length])) <= MAX_PLACES:
            assert guesses == naive_guesses(tokens[:length], speculation)


def test_the_hit_ratio_follows_what_is_drawn() -> None:
    lookup = PromptLookup(Speculation(4, 1, 2))
    tokens = [1, 2, 3] * 20
    for length in range(6, 60):
        lookup.guess(tokens[:length])
    assert lookup.hit_ratio > 0.9
    for token_id in range(100, 150):
        tokens += [token_id, 1]
        lookup.guess(tokens)
    assert lookup.hit_ratio < 0.1


@pytest.mark.parametrize("fields", [(65, 1, 1), (-1, 1, 1), (1, 0, 1), (1, 3, 2), (1, 1, 65)])
def test_settings_are_checked(fields: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidRequest):
        Speculation(*fields)

"""Bursts: what is written, reported and kept is the same as one token at a time, whatever ends or interrupts them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, PreTrainedModel

from kea.attention.storage import unpack
from kea.engine.base import ContextSpec, StepShape
from kea.engine.bursts import MAX_ROUNDS, BurstPlanner
from kea.engine.config import DecodingConfig, EngineConfig, StepLimits, resolve_limits
from kea.engine.core import EngineCore
from kea.engine.guessing import Payoff
from kea.engine.latency import LatencyModel
from kea.errors import EngineFault
from kea.memory import KVMemory, MemoryConfig
from kea.models import Tokenizer, load_model
from kea.models.base import DrawingDecoder
from kea.types import Constraint, Finish, FinishReason, GenerateOptions, Sampling, Speculation, Stopping
from tests.engine.conftest import Clock, MakeDriver
from tests.engine.driver import Driver, Output, greedy
from tests.engine.oracle import compare_greedy
from tests.fakes.decoder import FaultyDecoder
from tests.models.families import VOCAB_SIZE, save_model
from tests.models.tokenizers_zoo import byte_level

TEXTS = (
    "One day, a girl named Sue found a red box in the garden. She wanted to open it",
    "Once upon a time",
    "Tom and Lily. Tom and Lily. Tom and",
    "The dog ran to the big tree and saw a cat. The dog ran",
)
ALONE = DecodingConfig(max_burst_s=0.0)
Start = Callable[[Driver, Tokenizer], Sequence[Output]]


class Rounds:
    """Counts the rounds of every step that a driver's core plans."""

    def __init__(self, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        self.all: list[int] = []
        plan = driver.core._batcher.plan

        def planned() -> object:
            work = plan()
            self.all += [work.num_rounds] if work.items else []
            return work

        monkeypatch.setattr(driver.core._batcher, "plan", planned)


def timeless(finish: Finish | None) -> Finish | None:
    return finish and replace(finish, usage=replace(finish.usage, waiting_s=0.0, prefill_s=0.0, decode_s=0.0))


@pytest.fixture
def compare(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[Output], list[int]]]:
    """Run the same with tokens drawn by the sampler, by the model one at a time, and in bursts; hold everything that
    can be seen against each other. A batch that stands is looked at after every step, or never.
    """

    def run(start: Start, **fields: object) -> tuple[list[Output], list[int]]:
        seen = []
        for decoding, can_draw, check in (
            *((ALONE, False, True), (ALONE, True, True), (ALONE, True, False)),
            *((DecodingConfig(), True, False), (DecodingConfig(), True, True)),
        ):
            driver = make_driver(decoding=decoding, can_draw=can_draw, check=check, **fields)
            rounds = Rounds(driver, monkeypatch)
            outputs = list(start(driver, stories_tokenizer))
            driver.run()
            snapshot = driver.core.snapshot()
            counters = (snapshot.prompt_tokens, snapshot.generation_tokens, snapshot.num_finished)
            pages = (snapshot.memory.num_used, snapshot.memory.num_free)
            said = [(one.token_ids, one.text, timeless(one.finish), repr(one.error)) for one in outputs]
            assert snapshot.num_draft_tokens == snapshot.num_accepted_tokens == 0
            seen.append((said, counters, pages))
            driver.core.check()
        for found in seen[1:]:
            assert found == seen[0]
        return outputs, rounds.all

    return run


def sampled(max_tokens: int, seed: int, **sampling: float) -> GenerateOptions:
    return GenerateOptions(Stopping(max_tokens, ignore_eos=True), Sampling(temperature=0.9, seed=seed, **sampling))  # type: ignore[arg-type]


def test_a_stream_is_written_in_few_steps_and_is_what_transformers_writes(
    compare: Callable[..., tuple[list[Output], list[int]]],
    stories_tokenizer: Tokenizer,
    stories_reference: PreTrainedModel,
) -> None:
    prompt = stories_tokenizer.encode(TEXTS[1])
    (output,), rounds = compare(lambda driver, _: [driver.start(prompt, greedy(100))])
    assert len(output.token_ids) == 100
    assert sum(rounds) == 100
    assert rounds[:5] == [1, 1, 2, 4, 8], "each burst is at most twice as long as the one before"
    compare_greedy(stories_reference, prompt, output.token_ids)


@pytest.mark.parametrize("page_tokens", [4, 16])
def test_rows_of_every_sampling_draw_what_they_draw_alone(
    compare: Callable[..., tuple[list[Output], list[int]]], page_tokens: int
) -> None:
    def start(driver: Driver, tokenizer: Tokenizer) -> list[Output]:
        options = (
            *(greedy(41), sampled(60, 1), sampled(23, 2, top_p=0.8), sampled(60, 3, top_k=20)),
            *(sampled(60, 4, min_p=0.1), sampled(5, 2**70 + 1, top_k=40, top_p=0.9)),
        )
        return [driver.start(tokenizer.encode(TEXTS[n % 4]), one) for n, one in enumerate(options)]

    outputs, rounds = compare(start, page_tokens=page_tokens)
    assert max(rounds) > page_tokens // 2
    assert [len(output.token_ids) for output in outputs] == [41, 60, 23, 60, 60, 5]


def test_an_output_that_stops_in_the_middle_of_a_burst_keeps_nothing_behind_its_stop(
    compare: Callable[..., tuple[list[Output], list[int]]],
) -> None:
    """Stop strings (across tokens), stop tokens, ends of the sequence, and who goes on with what was kept."""

    def start(driver: Driver, tokenizer: Tokenizer) -> list[Output]:
        prompt = tokenizer.encode(TEXTS[1])
        alone = driver.start(prompt, greedy(60))
        driver.run()
        token_id = next(t for t in alone.token_ids[20:] if t not in alone.token_ids[:20])
        stops = [alone.text[40:47], alone.text[61:64]]
        options = [GenerateOptions(Stopping(60, stop=(stop,)), Sampling(temperature=0.0)) for stop in stops]
        options.append(GenerateOptions(Stopping(60, stop_token_ids=(token_id,)), Sampling(temperature=0.0)))
        outputs = [alone]
        for one in options:
            context = driver.context()
            driver.append(context, prompt)
            outputs.append(driver.generate(context, one))
            driver.append(context, tokenizer.encode(" The end."))
            outputs.append(driver.generate(context, greedy(20)))
        driver.run()
        return outputs

    outputs, rounds = compare(start)
    assert max(rounds) > 8
    ends = [one.finish.reason for one in outputs if one.finish is not None]
    assert ends[1::2] == [FinishReason.STOP] * 3
    assert ends[2::2] == [FinishReason.LENGTH] * 3


def test_the_end_of_a_sequence_ends_an_output_in_a_burst(
    compare: Callable[..., tuple[list[Output], list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token that some output would draw is taken for the end, each once."""
    ends = iter(range(3, 40, 6))

    def start(driver: Driver, tokenizer: Tokenizer) -> list[Output]:
        prompt = tokenizer.encode(TEXTS[3])
        outputs = [driver.start(prompt, greedy(40))]
        driver.run()
        for place in range(3, 40, 6):
            monkeypatch.setattr(driver.core, "_eos_token_ids", (outputs[0].token_ids[place],))
            outputs.append(driver.start(prompt, GenerateOptions(Stopping(40), Sampling(temperature=0.0))))
            driver.run()
        return outputs

    outputs, _ = compare(start)
    for output, end in zip(outputs[1:], ends, strict=True):
        first = outputs[0].token_ids.index(outputs[0].token_ids[end])
        assert output.token_ids == outputs[0].token_ids[: first + 1]


@pytest.mark.parametrize("max_model_len", [40, 47])
def test_no_row_goes_beyond_the_length_of_a_context(
    compare: Callable[..., tuple[list[Output], list[int]]], max_model_len: int
) -> None:
    def start(driver: Driver, tokenizer: Tokenizer) -> list[Output]:
        return [driver.start(tokenizer.encode(TEXTS[1]), one) for one in (greedy(1000), sampled(1000, 1))]

    outputs, rounds = compare(start, max_model_len=max_model_len, page_tokens=8, num_pages=14)
    assert max(rounds) > 4
    assert all(one.finish and one.finish.context_len == max_model_len for one in outputs)


def test_forks_and_drops_and_a_pool_that_is_too_small(compare: Callable[..., tuple[list[Output], list[int]]]) -> None:
    def start(driver: Driver, tokenizer: Tokenizer) -> list[Output]:
        parent = driver.context()
        driver.append(parent, tokenizer.encode(TEXTS[0]))
        driver.run()
        children = [driver.fork(parent, at) for at in (7, 16, None)]
        driver.drop(children[2], 3, 9)
        outputs = [driver.generate(child, sampled(40, n)) for n, child in enumerate((parent, *children))]
        return [*outputs, driver.start(tokenizer.encode(TEXTS[3]), greedy(50))]

    outputs, rounds = compare(start, num_pages=17, page_tokens=8, max_model_len=120)
    assert max(rounds) > 4
    assert all(one.finish is not None for one in outputs)


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "mistral", "granite", "glm4", "smollm3"])
def test_windows_caps_and_scales_in_bursts(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_model(family, tmp_path)
    model = load_model(path)
    reference = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    config = EngineConfig(str(path), kv_memory_bytes=80 * 4 * model.facts.kv_token_bytes, page_tokens=4)
    driver = Driver(EngineCore(model, byte_level(), resolve_limits(config, model.facts, 0), Clock()))
    rounds = Rounds(driver, monkeypatch)
    rng = random.Random(family)
    prompts = [[rng.randrange(3, VOCAB_SIZE) for _ in range(length)] for length in (2, 30, 41)]
    prompts.append([*prompts[1][:25], 5, 6])
    outputs = [driver.start(prompt, greedy(36)) for prompt in prompts]
    driver.run()
    assert max(rounds.all) >= 16
    for prompt, output in zip(prompts, outputs, strict=True):
        compare_greedy(reference, prompt, output.token_ids)


def test_what_a_model_cannot_draw_is_one_token_at_a_time(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for the rows beside it; and what it changes nothing of, is drawn in bursts again."""
    monkeypatch.setattr(Payoff, "pays", lambda *_: True)
    plain = Sampling(temperature=0.0)
    length = Stopping(20, ignore_eos=True)
    others = {
        "a bias": GenerateOptions(length, Sampling(temperature=0.0, logit_bias={5: 1.0})),
        "a penalty": GenerateOptions(length, Sampling(temperature=0.0, repetition_penalty=1.1)),
        "log-probabilities": GenerateOptions(length, plain, logprobs=1),
        "a constraint": GenerateOptions(length, plain, constraint=Constraint("regex", "[a-z ]{30}")),
        "guesses": GenerateOptions(length, plain, speculation=Speculation(2, 1, 2)),
        "ends that may not be drawn": GenerateOptions(Stopping(20, min_tokens=20), plain),
    }
    prompt = stories_tokenizer.encode(TEXTS[1])
    for name, options in others.items():
        driver = make_driver()
        rounds = Rounds(driver, monkeypatch)
        driver.start(prompt, greedy(200))
        other = driver.start(prompt, options)
        while not other.token_ids:  # a constraint is compiled first
            driver.step()
        num_steps = len(rounds.all)
        while not other.is_over:
            driver.step()
        assert set(rounds.all[num_steps:]) == {1}, name
        driver.run()
        assert max(rounds.all) > 4, name


def test_the_scores_of_a_prompt_are_reported_before_a_burst(
    compare: Callable[..., tuple[list[Output], list[int]]],
) -> None:
    def start(driver: Driver, tokenizer: Tokenizer) -> list[Output]:
        prompt = tokenizer.encode(TEXTS[0])
        return [driver.start(prompt, greedy(30), ContextSpec(prompt_logprobs=0)), driver.start(prompt[:1], greedy(30))]

    outputs, rounds = compare(start)
    assert outputs[0].prompt_logprobs is not None
    assert len(outputs[0].prompt_logprobs) == len(outputs[0].prompt)
    assert max(rounds) > 4


def test_who_comes_ends_the_bursts_and_who_goes_is_heard_between_them(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = make_driver(max_num_batched_tokens=8)
    rounds = Rounds(driver, monkeypatch)
    prompt = stories_tokenizer.encode(TEXTS[0])
    first, second = (driver.start(prompt, greedy(200)) for _ in range(2))
    while max(rounds.all, default=0) < 16:
        driver.step()
    driver.cancel(second)
    num_steps = len(rounds.all)
    late = driver.start(stories_tokenizer.encode(TEXTS[3]), greedy(9))
    while not late.token_ids:
        driver.step()
    assert second.finish is not None
    assert second.finish.reason is FinishReason.CANCELLED
    assert set(rounds.all[num_steps:]) == {1}
    driver.run()
    assert len(first.token_ids) == 200
    assert first.token_ids[: len(second.token_ids)] == second.token_ids


def test_a_row_that_is_not_finite_fails_alone_and_reaches_no_other(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = make_driver()
    prompts = [stories_tokenizer.encode(text) for text in TEXTS[:2]]
    alone = [driver.start(prompt, greedy(40)) for prompt in prompts]
    driver.run()
    runner = driver.core._runner
    model = runner._model
    assert isinstance(model, DrawingDecoder)
    for draws_nothing in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(runner, "_model", FaultyDecoder(model, draws_nothing=draws_nothing))
            good, bad = (driver.start(prompt, greedy(40)) for prompt in prompts)
            driver.run()
        assert isinstance(bad.error, EngineFault)
        assert "finite" in str(bad.error)
        assert good.token_ids == alone[0].token_ids
        assert alone[1].token_ids[: len(bad.token_ids)] == bad.token_ids
        assert len(bad.token_ids) < 40
        for layer in runner._cache:
            assert unpack(layer.keys).isfinite().all()
        again = driver.start(prompts[1], greedy(40))
        driver.run()
        assert again.token_ids == alone[1].token_ids


# How many rounds


def limits(**fields: float) -> StepLimits:
    return replace(StepLimits(100, 16, 1000, 8, 100, max_burst_s=0.02), **fields)  # type: ignore[arg-type]


def test_a_burst_is_predicted_to_stay_below_its_limit(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for max_burst_s, most in ((1.0, MAX_ROUNDS), (0.02, 9), (0.005, 2)):
        driver = make_driver(decoding=DecodingConfig(max_burst_s=max_burst_s))
        monkeypatch.setattr(driver.core._latency, "predict", lambda shape: 0.001 + 0.002 * shape.num_rounds)
        rounds = Rounds(driver, monkeypatch)
        driver.start(stories_tokenizer.encode(TEXTS[1]), greedy(400))
        driver.run()
        assert max(rounds.all) == most
    for seconds in (0.5, 0.025):  # a first round alone takes so long, and others nothing
        driver = make_driver()
        monkeypatch.setattr(driver.core._latency, "predict", lambda _shape, seconds=seconds: seconds)
        rounds = Rounds(driver, monkeypatch)
        driver.start(stories_tokenizer.encode(TEXTS[1]), greedy(20))
        driver.run()
        assert (max(rounds.all) > 1) == (seconds == 0.025)
    driver = make_driver(decoding=DecodingConfig(tpot_objective_s=0.006))
    monkeypatch.setattr(driver.core._latency, "predict", lambda shape: 0.001 + 0.002 * shape.num_rounds)
    rounds = Rounds(driver, monkeypatch)
    driver.start(stories_tokenizer.encode(TEXTS[1]), greedy(50))
    driver.run()
    assert max(rounds.all) == 2


def test_a_burst_that_took_too_long_makes_the_next_shorter_at_once(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the latency model still predicts what was so before, and within the steps that keep a choice."""
    driver = make_driver(decoding=DecodingConfig(max_burst_s=0.02))
    monkeypatch.setattr(driver.core._latency, "predict", lambda shape: 0.001 * shape.num_rounds)
    rounds = Rounds(driver, monkeypatch)
    driver.start(stories_tokenizer.encode(TEXTS[1]), greedy(400))
    while max(rounds.all, default=0) < 20:
        driver.step()
    advance = driver.core._batcher.advance
    monkeypatch.setattr(
        driver.core._batcher, "advance", lambda batch, _: advance(batch, 0.01 * batch.num_rounds)
    )  # ten times as slow from now on
    num_before = len(rounds.all)
    driver.run()
    slow = rounds.all[num_before:]
    assert slow[0] == 20
    assert slow[1] == 2
    assert max(slow[1:]) <= 4, "tried with twice as many as fit, at most"


def test_without_items_or_a_model_that_draws_no_batch_stands() -> None:
    memory = KVMemory(MemoryConfig(100, 16))
    for given in (limits(), limits(can_draw=True)):
        planner = BurstPlanner(given, memory, LatencyModel(), lambda _: None)
        assert planner.form((), is_alone=True) is None


def test_the_latency_model_tells_what_begins_a_burst_from_what_each_round_takes() -> None:
    model = LatencyModel()
    rng = random.Random(0)
    for _ in range(400):
        rounds, rows = rng.choice([1, 2, 4, 8, 16]), rng.randrange(1, 9)
        kv = rows * rng.randrange(50, 500)
        seconds = 0.003 + rounds * (0.001 + 0.0002 * rows)
        model.observe(StepShape(0, rows, kv, num_rounds=rounds), seconds * rng.uniform(0.97, 1.03))
    for rounds in (1, 6, 32):
        predicted = model.predict(StepShape(0, 4, 800, num_rounds=rounds))
        assert predicted == pytest.approx(0.003 + rounds * 0.0018, rel=0.05)

"""Steps launched before the last one has landed: what is written, reported and kept is the same as step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from kea.engine.base import ContextSpec
from kea.engine.batcher import StepWork
from kea.engine.choices import KnownChoice
from kea.engine.config import DecodingConfig
from kea.engine.core import EngineCore
from kea.engine.flight import Flight
from kea.engine.sampling import Draws, Sampler, choose_rows_ahead
from kea.errors import EngineFault
from kea.models import Tokenizer
from kea.models.base import StepInput
from kea.types import Constraint, Finish, FinishReason, GenerateOptions, Sampling, Speculation, Stopping
from tests.engine.conftest import MakeDriver
from tests.engine.driver import Driver, Output, greedy
from tests.engine.test_bursts import TEXTS, Start, sampled, timeless

ALONE = DecodingConfig(overlap=False, max_burst_s=0.0)
OVERLAP = DecodingConfig(overlap=True)
Compare = Callable[..., tuple[list[Output], "Log"]]


class Log:
    """The order in which a core launches steps and lands them, and which were launched behind another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.num_ahead = 0
        self._flights: list[Flight] = []
        launch, land = EngineCore._launch, EngineCore._land

        def launched(core: EngineCore, work: StepWork, started: float, before: Flight | None = None) -> Flight | None:
            flight = launch(core, work, started, before)
            if flight is not None:
                self.events.append(f"launch {len(self._flights)}")
                self._flights.append(flight)
                self.num_ahead += before is not None
            return flight

        def landed(core: EngineCore, flight: Flight, behind: Flight | None = None) -> None:
            self.events.append(f"land {self._flights.index(flight)}")
            land(core, flight, behind)

        monkeypatch.setattr(EngineCore, "_launch", launched)
        monkeypatch.setattr(EngineCore, "_land", landed)

    def clear(self) -> None:
        self.events.clear()
        self._flights.clear()
        self.num_ahead = 0


def end_of(output: Output) -> Finish | None:
    """Return how an output ended, but for times, and for what it found computed by others when it began."""
    finish = timeless(output.finish)
    return finish and replace(finish, usage=replace(finish.usage, cached_tokens=0, num_preemptions=0))


@pytest.fixture
def compare(make_driver: MakeDriver, stories_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """Run the same step by step and with steps that overlap; hold everything that can be seen against each other."""

    def run(start: Start, **fields: object) -> tuple[list[Output], Log]:
        seen = []
        log = Log(monkeypatch)
        for decoding in (ALONE, OVERLAP):
            driver = make_driver(decoding=decoding, **fields)
            log.clear()
            outputs = list(start(driver, stories_tokenizer))
            driver.run()
            snapshot = driver.core.snapshot()
            counters = (snapshot.generation_tokens, snapshot.num_finished)
            said = [(one.token_ids, one.text, end_of(one), repr(one.error)) for one in outputs]
            assert all(not context.num_flying for context in driver.core._contexts.all)
            seen.append((said, counters, snapshot.memory.num_used))
        assert seen[0] == seen[1]
        return outputs, log

    return run


def test_a_step_is_launched_before_the_one_before_it_lands(compare: Compare, stories_tokenizer: Tokenizer) -> None:
    prompt = stories_tokenizer.encode(TEXTS[1])
    (output,), log = compare(lambda driver, _: [driver.start(prompt, greedy(20))])
    assert len(output.token_ids) == 20
    assert log.events[:5] == ["launch 0", "launch 1", "land 0", "launch 2", "land 1"]
    assert log.num_ahead == 19, "the prompt's step is the only one that waits for nothing before it"
    assert len(log.events) == 40, "no step is computed for a token that the output has no room for"


def test_rows_of_every_sampling_draw_what_they_draw_alone(compare: Compare) -> None:
    def start(driver: Driver, tokenizer: Tokenizer) -> list[Output]:
        options = (
            *(greedy(41), sampled(60, 1), sampled(23, 2, top_p=0.8), sampled(60, 3, top_k=20)),
            *(sampled(60, 4, min_p=0.1), sampled(5, 2**70 + 1, top_k=40, top_p=0.9)),
        )
        return [driver.start(tokenizer.encode(TEXTS[n % 4]), one) for n, one in enumerate(options)]

    outputs, log = compare(start, page_tokens=4)
    assert log.num_ahead > 50
    assert [len(output.token_ids) for output in outputs] == [41, 60, 23, 60, 60, 5]


def test_tokens_go_from_step_to_step_without_being_read(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: chosen by operators that are not waited for; the next step takes them from where they are."""

    def start(driver: Driver, tokenizer: Tokenizer) -> list[Output]:
        options = (greedy(30), sampled(40, 1), sampled(23, 2, top_p=0.5), sampled(35, 3, top_k=20, top_p=0.9))
        return [driver.start(tokenizer.encode(TEXTS[n % 4]), one) for n, one in enumerate(options)]

    expected, _ = compare(start)
    monkeypatch.setattr(Sampler, "_choose", lambda _, logits, rows: choose_rows_ahead(logits, rows))
    outputs, log = compare(start)
    assert [one.token_ids for one in outputs] == [one.token_ids for one in expected]
    assert log.num_ahead > 30


def test_long_prompts_come_in_while_others_decode(compare: Compare) -> None:
    """Chunks and decode rows are planned behind a step that has not landed, as many come as there are places."""

    def start(driver: Driver, tokenizer: Tokenizer) -> list[Output]:
        outputs = [driver.start(tokenizer.encode(TEXTS[n % 4]), sampled(12 + n, n)) for n in range(3)]
        for n in range(12):
            driver.step()
            outputs.append(driver.start(tokenizer.encode(" ".join(TEXTS[n % 3 :])), sampled(9 + n % 4, n)))
        return outputs

    _, log = compare(start, max_num_batched_tokens=16, max_num_seqs=4)
    assert log.num_ahead > len(log.events) // 3


def test_what_many_begin_with_is_computed_once(compare: Compare) -> None:
    def start(driver: Driver, tokenizer: Tokenizer) -> list[Output]:
        common = tokenizer.encode(" ".join(TEXTS))
        outputs = []
        for n in range(6):
            outputs.append(driver.start([*common, 300 + n], greedy(8)))
            driver.step()
        driver.run()
        computed.append(driver.core.snapshot().prompt_tokens)
        return outputs

    computed: list[int] = []
    compare(start, max_num_batched_tokens=24, page_tokens=4)
    step_by_step, overlapping = computed
    assert overlapping <= step_by_step + 24


def test_an_output_keeps_nothing_behind_its_stop(compare: Compare) -> None:
    """Stop strings (across tokens), stop tokens, and who goes on with what was kept."""

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

    outputs, log = compare(start)
    ends = [one.finish.reason for one in outputs if one.finish is not None]
    assert ends[1::2] == [FinishReason.STOP] * 3
    assert ends[2::2] == [FinishReason.LENGTH] * 3
    assert log.num_ahead > 60


def test_forks_and_drops_and_a_pool_that_is_too_small(compare: Compare) -> None:
    def start(driver: Driver, tokenizer: Tokenizer) -> list[Output]:
        parent = driver.context()
        driver.append(parent, tokenizer.encode(TEXTS[0]))
        driver.run()
        children = [driver.fork(parent, at) for at in (7, 16, None)]
        driver.drop(children[2], 3, 9)
        outputs = [driver.generate(child, sampled(40, n)) for n, child in enumerate((parent, *children))]
        return [*outputs, driver.start(tokenizer.encode(TEXTS[3]), greedy(50))]

    outputs, log = compare(start, num_pages=17, page_tokens=8, max_model_len=120)
    assert log.num_ahead > 20
    assert all(one.finish is not None for one in outputs)


def test_what_depends_on_the_last_token_waits_for_it(compare: Compare) -> None:
    plain, length = Sampling(temperature=0.0), Stopping(20, ignore_eos=True)
    options = (
        GenerateOptions(length, Sampling(temperature=0.0, repetition_penalty=1.1)),
        GenerateOptions(length, plain, logprobs=1),
        GenerateOptions(length, plain, constraint=Constraint("regex", "[a-z ]{30}")),
        GenerateOptions(length, plain, speculation=Speculation(2, 1, 2)),
        GenerateOptions(Stopping(20, min_tokens=20), plain),
    )
    for one in options:

        def start(driver: Driver, tokenizer: Tokenizer, one: GenerateOptions = one) -> list[Output]:
            prompt = tokenizer.encode(TEXTS[1])
            return [driver.start(prompt, greedy(40)), driver.start(prompt, one)]

        outputs, log = compare(start)
        assert log.num_ahead > 10
        assert all(output.finish is not None for output in outputs)


def test_scores_of_a_prompt(compare: Compare) -> None:
    def start(driver: Driver, tokenizer: Tokenizer) -> list[Output]:
        prompt = tokenizer.encode(TEXTS[0])
        return [driver.start(prompt, greedy(30), ContextSpec(prompt_logprobs=0)), driver.start(prompt[:1], greedy(30))]

    outputs, _ = compare(start, max_num_batched_tokens=16)
    assert outputs[0].prompt_logprobs is not None
    assert len(outputs[0].prompt_logprobs) == len(outputs[0].prompt)


def test_who_cancels_or_frees_is_heard_once_the_step_has_landed(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer
) -> None:
    driver = make_driver(decoding=OVERLAP)
    prompt = stories_tokenizer.encode(TEXTS[1])
    context = driver.context()
    driver.append(context, prompt)
    freed = driver.generate(context, greedy(60))
    cancelled, other = (driver.start(prompt, greedy(60)) for _ in range(2))
    for _ in range(6):
        driver.step()
    driver.free(context)
    driver.cancel(cancelled)
    for _ in range(2):
        driver.step()
    assert context not in driver.core._contexts._contexts
    assert cancelled.finish is not None
    assert cancelled.finish.reason is FinishReason.CANCELLED
    driver.run()
    assert len(other.token_ids) == 60
    assert other.token_ids[: len(cancelled.token_ids)] == cancelled.token_ids
    assert freed.token_ids == other.token_ids[: len(freed.token_ids)]
    assert driver.core.snapshot().memory.num_used == sum(c.pages.num_pages for c in driver.core._contexts.all)


def test_operations_on_a_prompt_in_flight_keep_their_order(compare: Compare) -> None:
    def start(driver: Driver, tokenizer: Tokenizer) -> list[Output]:
        context = driver.context()
        driver.append(context, tokenizer.encode(" ".join(TEXTS)))
        driver.step()
        driver.append(context, [5, 6])
        driver.truncate(context, 30)
        driver.append(context, [7])
        child = driver.fork(context, 20)
        driver.drop(context, 4, 9)
        outputs = [driver.generate(context, greedy(9)), driver.generate(child, greedy(9))]
        driver.run()
        return outputs

    compare(start, max_num_batched_tokens=16, page_tokens=4)


class Late(KnownChoice):
    """A choice whose first row is told to the device wrongly, as one that was not settled there."""

    @property
    def tokens(self) -> torch.Tensor:
        tokens = super().tokens
        tokens[0] += 1
        return tokens

    def read(self) -> list[int | None]:
        self.late = (0,)
        return super().read()


def test_a_token_that_was_not_settled_makes_what_was_computed_of_it_void(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [sampled(30, 1), greedy(30), sampled(25, 3)]
    prompts = [stories_tokenizer.encode(text) for text in TEXTS[:3]]

    def run(decoding: DecodingConfig) -> list[list[int]]:
        driver = make_driver(decoding=decoding)
        outputs = [driver.start(prompt, one) for prompt, one in zip(prompts, options, strict=True)]
        driver.run()
        return [output.token_ids for output in outputs]

    expected = run(ALONE)
    begin, num_drawn = Draws.__init__, 0

    def late(self: Draws, logits: torch.Tensor, rows: Sequence[object], choice: KnownChoice) -> None:
        nonlocal num_drawn
        num_drawn += 1
        begin(self, logits, rows, Late(choice._token_ids) if rows and num_drawn % 4 == 0 else choice)  # type: ignore[arg-type]

    monkeypatch.setattr(Draws, "__init__", late)
    assert run(OVERLAP) == expected
    assert num_drawn > 30


def test_a_row_that_is_not_finite_fails_alone_and_reaches_no_other(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = make_driver(decoding=OVERLAP)
    prompts = [stories_tokenizer.encode(text) for text in TEXTS[:2]]
    alone = [driver.start(prompt, greedy(40)) for prompt in prompts]
    driver.run()
    model, runner = driver.core._runner._model, driver.core._runner

    class Faulty:
        """Writes what is no number for the second of two rows, once it is far enough."""

        facts = model.facts

        def forward(self, step: StepInput, cache: tuple[object, ...]) -> torch.Tensor:
            logits = model.forward(step, cache)  # type: ignore[arg-type]
            last = step.plan.sequences[-1]
            if len(step.plan.sequences) == 2 and last.position > len(prompts[1]) + 9:
                cache[-1].keys[step.plan.slots[-1]] = torch.nan  # type: ignore[attr-defined]
            return logits

    with monkeypatch.context() as patch:
        patch.setattr(runner, "_model", Faulty())
        good, bad = (driver.start(prompt, greedy(40)) for prompt in prompts)
        driver.run()
    assert isinstance(bad.error, EngineFault)
    assert "finite" in str(bad.error)
    assert good.token_ids == alone[0].token_ids
    assert alone[1].token_ids[: len(bad.token_ids)] == bad.token_ids
    assert 5 < len(bad.token_ids) < 40
    for layer in runner._cache:
        assert layer.keys.isfinite().all()
    again = driver.start(prompts[1], greedy(40))
    driver.run()
    assert again.token_ids == alone[1].token_ids


def test_a_fault_of_the_model_ends_the_steps_not_the_engine(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = make_driver(decoding=OVERLAP)
    prompt = stories_tokenizer.encode(TEXTS[0])
    running = driver.start(prompt, greedy(20))
    for _ in range(3):
        driver.step()

    def fail(*_: object) -> None:
        raise RuntimeError("the accelerator is on fire")

    with monkeypatch.context() as patch:
        patch.setattr(driver.core._runner, "run", fail)
        driver.step()
        driver.step()
    assert isinstance(running.error, EngineFault)
    with monkeypatch.context() as patch:
        patch.setattr(Draws, "finish", fail)
        late = driver.start(prompt, greedy(20))
        driver.run()
    assert isinstance(late.error, EngineFault)
    after = driver.start(prompt, greedy(5))
    driver.run()
    assert len(after.token_ids) == 5


def test_a_constraint_behind_plain_rows_holds(make_driver: MakeDriver, stories_tokenizer: Tokenizer) -> None:
    driver = make_driver(decoding=OVERLAP)
    prompt = stories_tokenizer.encode(TEXTS[1])
    plain = driver.start(prompt, greedy(60))
    bound = replace(greedy(12), constraint=Constraint("regex", "[a-z ]{30}"))
    output = driver.start(prompt, bound)
    driver.run()
    assert len(plain.token_ids) == 60
    assert set(output.text) <= set("abcdefghijklmnopqrstuvwxyz ")

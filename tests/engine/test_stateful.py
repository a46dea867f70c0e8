"""Random operations on contexts in a page pool that is too small, with every invariant checked after every step.

Whatever happened, each finished output must be what transformers gives for the tokens before it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, precondition, rule
from transformers import AutoModelForCausalLM, PreTrainedModel

from kea.engine.base import ContextSpec
from kea.engine.config import DecodingConfig, EngineConfig, resolve_limits
from kea.engine.core import EngineCore
from kea.errors import Cancelled, ContextLengthExceeded, InvalidRequest
from kea.models import DecoderModel, Tokenizer, load_model
from kea.types import Speculation
from tests.conftest import SHARED, require_shared
from tests.engine.conftest import Clock
from tests.engine.driver import Driver, Output, greedy
from tests.engine.oracle import compare_greedy, reference_logits

MODEL = SHARED / "models" / "stories260k"
MAX_LEN = 60
NUM_PAGES = 17
PAGE_TOKENS = 4
SHARES = st.floats(0, 1.05)
GUESSES = st.sampled_from([None, None, Speculation(3, 1, 2)])
TOKENS = st.lists(st.integers(3, 9), min_size=1, max_size=14)


@cache
def _parts() -> tuple[DecoderModel, Tokenizer, PreTrainedModel]:
    torch.set_num_threads(1)
    return load_model(MODEL), Tokenizer.load(MODEL), AutoModelForCausalLM.from_pretrained(MODEL)


class EngineMachine(RuleBasedStateMachine):
    decoding = DecodingConfig()
    is_watched = True  # a look at the core writes down what a batch that stands has left for later
    contexts = Bundle("contexts")
    outputs = Bundle("outputs")

    def __init__(self) -> None:
        super().__init__()
        model, tokenizer, _ = _parts()
        config = EngineConfig(
            str(MODEL),
            kv_memory_bytes=NUM_PAGES * PAGE_TOKENS * model.facts.kv_token_bytes,
            page_tokens=PAGE_TOKENS,
            max_model_len=MAX_LEN,
            max_num_seqs=5,
            max_num_batched_tokens=23,
            decoding=self.decoding,
        )
        limits = resolve_limits(config, model.facts, 0)
        self.driver = Driver(EngineCore(model, tokenizer, limits, Clock()), check=self.is_watched)
        self.dropped: set[int] = set()
        self.from_dropped: list[Output] = []

    @rule(
        target=contexts,
        tenant=st.sampled_from(["", "", "other"]),
        priority=st.integers(0, 2),
        prompt_logprobs=st.sampled_from([None, None, 0]),
    )
    def open(self, tenant: str, priority: int, prompt_logprobs: int | None) -> int:
        return self.driver.context(ContextSpec(tenant=tenant, priority=priority, prompt_logprobs=prompt_logprobs))

    @rule(target=contexts, tokens=TOKENS, tail=st.integers(3, 200), max_tokens=st.integers(8, 30), guess=GUESSES)
    def start(self, tokens: list[int], tail: int, max_tokens: int, guess: Speculation | None) -> int:
        context = self.driver.context()
        self.driver.append(context, [1, *tokens, tail])
        self.driver.generate(context, replace(greedy(max_tokens), speculation=guess))
        return context

    @rule(context=contexts, tokens=TOKENS)
    def append(self, context: int, tokens: list[int]) -> None:
        self.driver.append(context, tokens)

    @rule(target=outputs, context=contexts, max_tokens=st.integers(1, 30), guess=GUESSES)
    def generate(self, context: int, max_tokens: int, guess: Speculation | None) -> Output:
        output = self.driver.generate(context, replace(greedy(max_tokens), speculation=guess))
        if context in self.dropped:
            self.from_dropped.append(output)
        return output

    @rule(target=contexts, context=contexts, share=st.none() | SHARES)
    def fork(self, context: int, share: float | None) -> int:
        child = self.driver.fork(context, None if share is None else self._position(context, share))
        if context in self.dropped:
            self.dropped.add(child)
        return child

    @rule(context=contexts, share=SHARES)
    def truncate(self, context: int, share: float) -> None:
        self.driver.truncate(context, self._position(context, share))

    @rule(context=contexts, share=SHARES, length=st.integers(1, 12))
    def drop(self, context: int, share: float, length: int) -> None:
        start = self._position(context, share)
        self.driver.drop(context, start, start + length)
        self.dropped.add(context)

    @rule(context=consumes(contexts))
    def free(self, context: int) -> None:
        self.driver.free(context)

    @rule(output=consumes(outputs))
    def cancel(self, output: Output) -> None:
        self.driver.cancel(output)

    @precondition(lambda self: self.driver.core.has_work)
    @rule(num_steps=st.integers(1, 12))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.driver.step()

    @rule()
    def look(self) -> None:
        self.driver.core.check()

    def _position(self, context: int, share: float) -> int:
        """Return a place in the context as it is now (a running generation may make it longer before it is used)."""
        return round(share * len(self.driver.core._contexts._contexts[context].tokens))

    def teardown(self) -> None:
        self.driver.run()
        for output in self.driver.outputs.values():
            assert output.is_over, "a generation was lost"
            assert output.error is None or isinstance(output.error, (Cancelled, InvalidRequest, ContextLengthExceeded))
            if output.token_ids and not any(output is other for other in self.from_dropped):
                compare_greedy(_parts()[2], output.prompt, output.token_ids)
                _check_scores(output)
            if output.finish is not None:
                assert 0 <= output.finish.usage.cached_tokens < output.finish.usage.prompt_tokens
        self.driver.core.check()
        _done["tokens"] += sum(len(output.token_ids) for output in self.driver.outputs.values())
        snapshot = self.driver.core.snapshot()
        _done["preemptions"] += snapshot.num_preemptions
        _done["hits"] += snapshot.num_accepted_tokens
        _done["misses"] += snapshot.num_draft_tokens - snapshot.num_accepted_tokens


def _check_scores(output: Output) -> None:
    """Compare the prompt's log-probabilities, where they were asked for, with transformers'."""
    if output.prompt_logprobs is None:
        return
    expected = reference_logits(_parts()[2], output.prompt).log_softmax(-1)
    assert len(output.prompt_logprobs) == len(output.prompt)
    for position, entry in enumerate(output.prompt_logprobs[1:], start=1):
        assert entry is not None
        assert entry.token_id == output.prompt[position]
        assert abs(entry.logprob - float(expected[position - 1, entry.token_id])) < 1e-4


_done = {"tokens": 0, "preemptions": 0, "hits": 0, "misses": 0}


class TestEngine(EngineMachine.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(  # no shrinking: a failure prints its steps, and shrinking them takes minutes
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
        max_examples=80,
        stateful_step_count=60,
        suppress_health_check=[HealthCheck.too_slow],
        deadline=None,
    )

    def runTest(self) -> None:  # noqa: N802 - hypothesis names it
        require_shared("models", "stories260k")
        super().runTest()
        assert _done["tokens"] > 500, "the random operations computed next to nothing"
        assert _done["preemptions"] > 5, "the pool was never too small"
        assert _done["hits"] > 5, "hardly a guess was right"
        assert _done["misses"] > 5, "hardly a guess was wrong"


class UnwatchedMachine(EngineMachine):
    """Nobody looks at the core between most steps: a batch stands for as long as nothing else is to be done."""

    is_watched = False


class TestUnwatchedEngine(UnwatchedMachine.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
        max_examples=80,
        stateful_step_count=60,
        suppress_health_check=[HealthCheck.too_slow],
        deadline=None,
    )

    def runTest(self) -> None:  # noqa: N802 - hypothesis names it
        require_shared("models", "stories260k")
        super().runTest()


class OverlappingMachine(EngineMachine):
    """Steps are launched before the last one has landed."""

    decoding = DecodingConfig(overlap=True)


class TestOverlappingEngine(OverlappingMachine.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
        max_examples=60,
        stateful_step_count=60,
        suppress_health_check=[HealthCheck.too_slow],
        deadline=None,
    )

    def runTest(self) -> None:  # noqa: N802 - hypothesis names it
        require_shared("models", "stories260k")
        super().runTest()

"""Random scripts of requests give the same however their tokens are drawn: step by step, in bursts that nobody looks
at, under an objective, or overlapping, in a pool that is too small.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kea.engine.base import ContextSpec
from kea.engine.config import DecodingConfig, EngineConfig, resolve_limits
from kea.engine.core import EngineCore
from kea.models import DecoderModel, Tokenizer
from kea.types import Constraint, Finish, GenerateOptions, Sampling, Speculation, Stopping
from tests.engine.conftest import Clock, Undrawing
from tests.engine.driver import Driver, Output

TEXT = "Once upon a time there was a girl named Lily. She loved to play with her dog Tom. The cat ran away"
STOPS = (" the", " a", "day", ".\n", "She", "ily", "e ", "\n")
PAGE_TOKENS, MAX_LEN, MAX_STEPS = 8, 256, 5000
WAYS = (DecodingConfig(), DecodingConfig(tpot_objective_s=0.004), DecodingConfig(overlap=True))


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt that comes before a step, what is generated, and what is issued behind that: names of operations."""

    step: int
    text: str
    spec: ContextSpec
    options: tuple[GenerateOptions, ...]
    behind: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Machine:
    model: DecoderModel
    tokenizer: Tokenizer
    path: Path

    def driver(self, num_pages: int, max_num_seqs: int, decoding: DecodingConfig, *, can_draw: bool) -> Driver:
        config = EngineConfig(
            str(self.path),
            kv_memory_bytes=num_pages * PAGE_TOKENS * self.model.facts.kv_token_bytes,
            page_tokens=PAGE_TOKENS,
            max_model_len=MAX_LEN,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=37,
            decoding=decoding,
        )
        model = self.model if can_draw else Undrawing(self.model)
        core = EngineCore(model, self.tokenizer, resolve_limits(config, self.model.facts, 0), Clock())
        return Driver(core, check=not can_draw)

    def run(self, driver: Driver, script: list[Request]) -> list[Output]:
        outputs: list[Output] = []
        waiting = list(script)
        for step in range(MAX_STEPS):
            while waiting and waiting[0].step <= step:
                outputs += self._issue(driver, waiting.pop(0))
            if not waiting and driver.core.wait_s is None:
                driver.core.check()
                return outputs
            time.sleep(driver.core.wait_s or 0.0)
            driver.step()
        raise AssertionError("the core does not come to an end")

    def _issue(self, driver: Driver, request: Request) -> list[Output]:
        context = driver.context(request.spec)
        driver.append(context, self.tokenizer.encode(request.text))
        outputs = [driver.generate(context, request.options[0])]
        for name, options in zip(request.behind, request.options[1:], strict=True):
            match name:
                case "append":
                    driver.append(context, self.tokenizer.encode_continuation(" and then"))
                case "truncate":
                    driver.truncate(context, 3)
                case "drop":
                    driver.drop(context, 1, 4)
                case "fork":
                    outputs.append(driver.generate(driver.fork(context), options))
                case _:
                    outputs.append(driver.generate(context, options))
        return outputs


def _options(rng: random.Random) -> GenerateOptions:
    max_tokens = rng.choice([1, 2, 5, 17, 40, 90])
    stopping = Stopping(
        max_tokens,
        stop=tuple(rng.sample(STOPS, rng.choice([0, 0, 1, 2]))),
        min_tokens=rng.choice([0, 0, min(3, max_tokens)]),
        ignore_eos=rng.random() < 0.5,
        stop_token_ids=tuple(rng.sample(range(300), rng.choice([0, 0, 3]))),
    )
    sampling = Sampling(
        temperature=rng.choice([0.0, 0.0, 0.8]),
        seed=rng.randrange(1 << 40),
        top_p=rng.choice([1.0, 0.9]),
        top_k=rng.choice([0, 20]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.0, 1.2]),
    )
    return GenerateOptions(
        stopping,
        sampling,
        logprobs=2 if rng.random() < 0.1 else None,
        constraint=Constraint("regex", "[a-z ]{5,30}") if rng.random() < 0.1 else None,
        speculation=Speculation(4, 1, 3) if rng.random() < 0.25 else None,
    )


def _script(rng: random.Random) -> list[Request]:
    requests = []
    for _ in range(rng.randrange(3, 14)):
        behind = tuple(rng.choices(["append", "fork", "truncate", "drop", "generate"], k=rng.choice([0, 0, 1, 3])))
        requests.append(
            Request(
                step=rng.randrange(60),
                text=" ".join(rng.choices(TEXT.split(), k=rng.randrange(1, 30))),
                spec=ContextSpec(priority=rng.choice([0, 0, 0, 1])),
                options=tuple(_options(rng) for _ in range(1 + len(behind))),
                behind=behind,
            )
        )
    return sorted(requests, key=lambda request: request.step)


def _timeless(finish: Finish | None) -> Finish | None:
    """Return an end without what depends on the load: times, and how much of a prompt was cached or preempted."""
    if finish is None:
        return None
    usage = replace(finish.usage, waiting_s=0, prefill_s=0, decode_s=0, cached_tokens=0, num_preemptions=0)
    return replace(finish, usage=usage)


def _said(driver: Driver, outputs: list[Output]) -> object:
    snapshot = driver.core.snapshot()
    told = [(one.token_ids, one.text, _timeless(one.finish), repr(one.error)) for one in outputs]
    return told, snapshot.generation_tokens, snapshot.num_finished


@pytest.mark.parametrize("seed", range(6))
def test_every_way_to_draw_gives_the_same(
    seed: int, stories_model: DecoderModel, stories_tokenizer: Tokenizer, stories260k: Path
) -> None:
    rng = random.Random(seed)
    script = _script(rng)
    num_pages, max_num_seqs = rng.choice([35, 60, 200]), rng.choice([3, 8])
    machine = Machine(stories_model, stories_tokenizer, stories260k)
    alone = machine.driver(200, 8, DecodingConfig(max_burst_s=0.0), can_draw=False)
    expected = _said(alone, machine.run(alone, script))
    for decoding in WAYS:
        driver = machine.driver(num_pages, max_num_seqs, decoding, can_draw=True)
        assert _said(driver, machine.run(driver, script)) == expected

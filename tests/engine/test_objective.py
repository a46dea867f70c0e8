"""The batcher holds a TPOT objective while a long prompt is prefilled: the real core on a machine of simulated time."""

from __future__ import annotations

import math
import random

import torch

from kea.attention.base import LayerCache
from kea.engine.base import Append, ContextSpec, CreateContext, Generate, Generated
from kea.engine.config import StepLimits
from kea.engine.core import EngineCore
from kea.models import Tokenizer
from kea.models.base import StepInput
from kea.types import GenerateOptions, Sampling, Stopping
from tools.overhead import IdleModel

OBJECTIVE_S = 0.03
PROMPT_TOKENS = 4096


class TimedModel(IdleModel):
    """Takes the time of a 100M model on two cores, with 5 % of noise, by a clock of its own."""

    def __init__(self) -> None:
        super().__init__(64, 16)
        self._rng = random.Random(4)
        self.now_s = 0.0

    def forward(self, step: StepInput, cache: tuple[LayerCache, ...]) -> torch.Tensor:
        seconds = 4e-3
        for sequence in step.plan.sequences:
            num_tokens, before = sequence.num_queries, sequence.position
            seconds += 4e-4 + 1e-6 * (before + num_tokens)
            if num_tokens > 1:
                seconds += 8e-5 * num_tokens + 1.5e-8 * num_tokens * (before + num_tokens / 2)
        self.now_s += seconds * math.exp(self._rng.gauss(0.0, 0.05))
        return super().forward(step, cache)


def _steps_while_a_prompt_is_prefilled(tokenizer: Tokenizer, objective_s: float | None) -> tuple[list[float], float]:
    """Return the seconds of each step between the arrival of a long prompt and its first token, with 8 others that
    decode meanwhile, and the median error of the latency model.
    """
    model = TimedModel()
    limits = StepLimits(800, 16, 8192, 16, 2048, objective_s)
    core = EngineCore(model, tokenizer, limits, lambda: model.now_s)
    for index in range(9):
        length = 40 + 60 * index if index < 8 else PROMPT_TOKENS
        if index == 8:
            for _ in range(150):
                core.step()
        core.handle(CreateContext(index, ContextSpec()))
        core.handle(Append(index, tuple((index * 7 + place * place) % 60 + 1 for place in range(length))))
        core.handle(Generate(index, index, GenerateOptions(Stopping(800), Sampling(temperature=0.0))))
    seconds = []
    while True:
        before = model.now_s
        events = core.step()
        seconds.append(model.now_s - before)
        if any(isinstance(event, Generated) and event.generation_id == 8 for event in events):
            break
    error = core.snapshot().latency.median_error_ratio
    assert error is not None
    return seconds, error


def test_the_objective_holds_while_4096_tokens_are_prefilled(stories_tokenizer: Tokenizer) -> None:
    seconds, error = _steps_while_a_prompt_is_prefilled(stories_tokenizer, OBJECTIVE_S)
    assert sum(second > 1.15 * OBJECTIVE_S for second in seconds) <= 0.05 * len(seconds)
    assert sorted(seconds)[len(seconds) // 2] > 0.6 * OBJECTIVE_S, "prefill does not use the room that there is"
    assert error < 0.1


def test_without_an_objective_the_others_wait_for_the_prompt(stories_tokenizer: Tokenizer) -> None:
    seconds, _ = _steps_while_a_prompt_is_prefilled(stories_tokenizer, None)
    assert max(seconds) > 5 * OBJECTIVE_S
    assert len(seconds) < 10

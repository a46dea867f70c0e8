"""Drives an engine's core synchronously, as its loop would, and collects what it says per generation."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from kea.engine.base import (
    Append,
    Cancel,
    ContextFailed,
    ContextSpec,
    CreateContext,
    Drop,
    Fork,
    Free,
    Generate,
    Generated,
    GenerationFailed,
    Truncate,
)
from kea.engine.core import EngineCore
from kea.errors import KeaError
from kea.types import Finish, GenerateOptions, Sampling, Stopping, TokenLogprob


@dataclass
class Output:
    """What one generation has said so far."""

    prompt: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    finish: Finish | None = None
    error: KeaError | None = None

    @property
    def is_over(self) -> bool:
        return self.finish is not None or self.error is not None


class Driver:
    """Issues commands by small method calls. With `check`, proves the core's invariants after every step."""

    def __init__(self, core: EngineCore, *, check: bool = True) -> None:
        self.core = core
        self._check = check
        self._ids = itertools.count(1)
        self.outputs: dict[int, Output] = {}
        self.context_errors: dict[int, KeaError] = {}

    def context(self, spec: ContextSpec | None = None) -> int:
        context_id = next(self._ids)
        self.core.handle(CreateContext(context_id, spec or ContextSpec()))
        return context_id

    def append(self, context_id: int, token_ids: Iterable[int]) -> None:
        self.core.handle(Append(context_id, tuple(token_ids)))

    def generate(self, context_id: int, options: GenerateOptions) -> Output:
        generation_id = next(self._ids)
        self.outputs[generation_id] = Output()
        self.core.handle(Generate(context_id, generation_id, options))
        return self.outputs[generation_id]

    def cancel(self, output: Output) -> None:
        generation_id = next(key for key, value in self.outputs.items() if value is output)
        self.core.handle(Cancel(generation_id))

    def fork(self, context_id: int, at: int | None = None) -> int:
        child_id = next(self._ids)
        self.core.handle(Fork(context_id, child_id, at))
        return child_id

    def truncate(self, context_id: int, length: int) -> None:
        self.core.handle(Truncate(context_id, length))

    def drop(self, context_id: int, start: int, stop: int) -> None:
        self.core.handle(Drop(context_id, start, stop))

    def free(self, context_id: int) -> None:
        self.core.handle(Free(context_id))

    def start(self, token_ids: Iterable[int], options: GenerateOptions, spec: ContextSpec | None = None) -> Output:
        """Open a context with a prompt and generate; its context is freed behind the generation."""
        context_id = self.context(spec)
        self.append(context_id, token_ids)
        return self.generate(context_id, options)

    def step(self) -> None:
        for generation_id, context in self.core._contexts._generating.items():
            assert context.generation is not None
            self.outputs[generation_id].prompt = context.tokens[: context.generation.prompt_len]
        for event in self.core.step():
            match event:
                case Generated():
                    self._take(event)
                case GenerationFailed():
                    self.outputs[event.generation_id].error = event.error
                case ContextFailed():
                    self.context_errors[event.context_id] = event.error
        if self._check:
            self.core.check()

    def run(self, max_steps: int = 10_000) -> None:
        """Step until there is nothing left to do."""
        for _ in range(max_steps):
            if self.core.wait_s is None:
                return
            time.sleep(self.core.wait_s)
            self.step()
        raise AssertionError(f"the core still has work after {max_steps} steps")

    def _take(self, event: Generated) -> None:
        output = self.outputs[event.generation_id]
        assert not output.is_over, "a generation went on after its end"
        output.token_ids.extend(event.chunk.token_ids)
        output.text += event.chunk.text
        output.logprobs.extend(event.chunk.logprobs)
        if event.chunk.prompt_logprobs is not None:
            output.prompt_logprobs = event.chunk.prompt_logprobs
        output.finish = event.chunk.finish


def greedy(max_tokens: int, **stopping: object) -> GenerateOptions:
    """Options of a greedy generation that ignores the end of the sequence."""
    return GenerateOptions(Stopping(max_tokens, ignore_eos=True, **stopping), Sampling(temperature=0.0))  # type: ignore[arg-type]

"""An engine without a model: contexts of characters, scripted replies, failures on demand. Knows no torch and no clock.

It keeps the contract of `kea.engine.base`: operations of a context run in order and return at once, a generation runs
whether or not anyone reads it, errors are raised from the generation that follows the failed operation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from kea.engine.base import (
    Capabilities,
    ContextSpec,
    EngineInfo,
    LatencySnapshot,
    Snapshot,
)
from kea.errors import EngineDied, KeaError
from kea.memory.base import MemorySnapshot
from kea.types import GenerateOptions
from tests.fakes.context import FakeContext
from tests.fakes.tokenizer import FakeTokenizer

Reply = Callable[[str, GenerateOptions], str]
"""The whole text of the context so far, and the options, to the text that the model would write before its end."""


def echo(prompt: str, options: GenerateOptions) -> str:
    """Reply with the last line of the prompt."""
    return prompt.rstrip("\n").rsplit("\n", 1)[-1]


def scripted(*replies: str) -> Reply:
    """Reply with each text in turn, in the order in which generations start; the last one again and again."""
    remaining = list(replies)
    return lambda prompt, options: remaining.pop(0) if len(remaining) > 1 else remaining[0]


@dataclass(slots=True)
class Fault:
    """An error that one coming generation raises after it emitted `after_tokens` tokens."""

    error: KeaError
    after_tokens: int = 0
    matches: str = ""


@dataclass(slots=True)
class Record:
    """What tests look at: the text before each generation in order of start, options, contexts made and freed."""

    prompts: list[str] = field(default_factory=list)
    token_ids: list[tuple[int, ...]] = field(default_factory=list)
    options: list[GenerateOptions] = field(default_factory=list)
    specs: list[ContextSpec] = field(default_factory=list)
    num_finished: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    generation_tokens: int = 0


class FakeEngine:
    """A deterministic engine. Every step emits `chunk_tokens` tokens and then yields to the loop.

    `hold()` stops all steps until `release()`; `fail_next()` plants a fault; `die()` ends everything that runs with
    `EngineDied` and refuses new work until `restart()`.
    """

    def __init__(
        self,
        reply: Reply = echo,
        *,
        tokenizer: FakeTokenizer | None = None,
        max_model_len: int = 4096,
        chunk_tokens: int = 4,
        model: str = "fake",
    ) -> None:
        self.reply = reply
        self.tokenizer = tokenizer or FakeTokenizer()
        self.chunk_tokens = chunk_tokens
        self.record = Record()
        self.contexts: set[FakeContext] = set()
        self.faults: list[Fault] = []
        self.death: KeaError | None = None
        self.is_closed = False
        self._running = asyncio.Event()
        self._running.set()
        self._info = EngineInfo(
            model=model,
            max_model_len=max_model_len,
            vocab_size=self.tokenizer.vocab_size,
            eos_token_ids=self.tokenizer.eos_token_ids,
            page_tokens=16,
            num_pages=1024,
            max_num_seqs=256,
            device="cpu",
            dtype="float32",
            kv_cache_dtype="float32",
            backend="fake",
            capabilities=Capabilities(batch_invariant=True),
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def is_alive(self) -> bool:
        return self.death is None

    def create_context(self, spec: ContextSpec) -> FakeContext:
        self.record.specs.append(spec)
        context = FakeContext(self, spec)
        self.contexts.add(context)
        return context

    async def snapshot(self, *, check: bool = False) -> Snapshot:
        running = sum(context.running is not None for context in self.contexts)
        num_used = sum(-(-len(context.token_ids) // 16) for context in self.contexts)
        memory = MemorySnapshot(1024, 1024 - num_used, num_used, 0, self.record.prompt_tokens, 0, 0)
        return Snapshot(
            num_running=running,
            num_waiting=0,
            num_contexts=len(self.contexts),
            num_steps=0,
            prompt_tokens=self.record.prompt_tokens,
            generation_tokens=self.record.generation_tokens,
            num_preemptions=0,
            num_finished=dict(self.record.num_finished),
            memory=memory,
            latency=LatencySnapshot(0.0, 0.0, 0.0, 0.0, 0, None),
        )

    async def close(self) -> None:
        self.is_closed = True
        for context in list(self.contexts):
            context.free()

    def hold(self) -> None:
        self._running.clear()

    def release(self) -> None:
        self._running.set()

    def fail_next(self, error: KeaError, *, after_tokens: int = 0, matches: str = "") -> None:
        """Make the next generation whose prompt contains `matches` raise `error` after some tokens."""
        self.faults.append(Fault(error, after_tokens, matches))

    def die(self, message: str = "The engine's process ended.") -> None:
        """End every context with `EngineDied`; new contexts fail the same way until `restart`."""
        self.death = EngineDied(message)
        for context in list(self.contexts):
            context.fail(EngineDied(message))

    def restart(self) -> None:
        self.death = None

    async def step(self) -> None:
        """Wait for the next step: one turn of the loop, or until `release`."""
        await asyncio.sleep(0)
        await self._running.wait()

    def take_fault(self, prompt: str) -> Fault | None:
        fault = next((fault for fault in self.faults if fault.matches in prompt), None)
        if fault is not None:
            self.faults.remove(fault)
        return fault

"""Evaluation through Kea's own engine, in this process: answers to prompts, and the losses of rows. Knows no task.

`KeaEngine` owns the engine's thread and an event loop; whoever makes one closes it, or uses it in a `with` block.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from kea.cluster import start_engine
from kea.engine.base import ContextSpec
from kea.engine.config import EngineConfig
from kea.types import Chunk, Constraint, GenerateOptions, Sampling, Stopping
from training.engines import SPARE_TOKENS, Subject
from training.tokenizer import encode


class KeaEngine:
    """Answers through Kea's engine in fp32, all prompts of a call at once: the batcher sees what a busy server sees."""

    def __init__(self, folder: Path, subject: Subject) -> None:
        self._subject = subject
        self._loop = asyncio.Runner()
        config = EngineConfig(model=str(folder), dtype="float32")
        self._engine = self._loop.run(start_engine(config, place="thread"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(self._engine.close())
        self._loop.close()

    def complete(self, prompts: Sequence[str], limit: int) -> list[str]:
        """Return greedy continuations of at most `limit` / 2 + SPARE_TOKENS tokens."""
        return self._complete(prompts, [greedy(limit // 2 + SPARE_TOKENS, self._subject.stop_ids)] * len(prompts))

    def complete_json(self, prompts: Sequence[str], schemas: Sequence[str], limit: int) -> list[str]:
        """Return greedy continuations that each match a JSON schema, of at most `limit` tokens."""
        free = greedy(limit, self._subject.stop_ids)
        return self._complete(prompts, [replace(free, constraint=Constraint("json_schema", s)) for s in schemas])

    def answers_exactly(self, prompts: Sequence[str], wanted: Sequence[str]) -> list[bool]:
        """Complete, and compare the texts."""
        given = self.complete(prompts, max(map(len, wanted)))
        return [answer == right for answer, right in zip(given, wanted, strict=True)]

    def token_losses(self, rows: Tensor) -> Tensor:
        """Return the loss in nats of tokens 1 .. T - 1 of every row [N, T - 1]; T is below the model's length."""
        spec, options = ContextSpec(prompt_logprobs=0), greedy(1, self._subject.stop_ids)
        chunks = self._run_all([self._generate(row, spec, options) for row in rows.tolist()])
        return torch.tensor(
            [[-entry.logprob for entry in (chunk.prompt_logprobs or ())[1:] if entry] for chunk in chunks]
        )

    def _complete(self, prompts: Sequence[str], options: Sequence[GenerateOptions]) -> list[str]:
        rows = [[*self._subject.start_ids, *encode(self._subject.tokenizer, prompt)] for prompt in prompts]
        pairs = zip(rows, options, strict=True)
        return [chunk.text for chunk in self._run_all([self._generate(row, ContextSpec(), own) for row, own in pairs])]

    def _run_all(self, work: Sequence[Coroutine[None, None, Chunk]]) -> list[Chunk]:
        async def gather() -> list[Chunk]:
            return await asyncio.gather(*work)

        return self._loop.run(gather())

    async def _generate(self, row: list[int], spec: ContextSpec, options: GenerateOptions) -> Chunk:
        context = self._engine.create_context(spec)
        context.append(row)
        whole = Chunk()
        try:
            async for chunk in context.generate(options):
                whole = whole.followed_by(chunk)
        finally:
            context.free()
        return whole


def greedy(max_tokens: int, stop_ids: list[int]) -> GenerateOptions:
    """Return the options of a greedy continuation that ends at one of these tokens."""
    stopping = Stopping(max_tokens=max_tokens, stop_token_ids=tuple(stop_ids))
    return GenerateOptions(stopping, Sampling(temperature=0.0))

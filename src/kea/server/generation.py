"""Running prompts on the engine: contexts made and freed, choices by fork, one re-run when the engine dies.

Every OpenAI-compatible endpoint generates through here. A context is freed the moment its output ends, and on every
other way out (errors, cancelled requests). Knows no HTTP and no bodies.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

from kea.engine.base import Context, ContextSpec, Engine, Generation
from kea.errors import EngineDied, KeaError, error_from_dict
from kea.server.metrics import Metrics
from kea.service import OutputTimer
from kea.types import Chunk, Finish, GenerateOptions, TokenLogprob

logger = logging.getLogger(__name__)

NUM_ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class PromptJob:
    """A prompt, the options of each of its choices, and its text where the caller gave that.

    `includes_stop`: a stop string that ends an output is its last text. `constraint_field`: what the request calls its
    constraint.
    """

    token_ids: tuple[int, ...]
    choices: tuple[GenerateOptions, ...]
    spec: ContextSpec
    text: str | None = None
    includes_stop: bool = False
    constraint_field: str | None = None


@dataclass(frozen=True, slots=True)
class ChoiceChunk:
    """A chunk and the output it belongs to, counted over all choices of all prompts."""

    choice_idx: int
    chunk: Chunk


@dataclass(slots=True)
class Written:
    """One whole output, gathered from its chunks."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    finish: Finish | None = None

    def add(self, chunk: Chunk) -> None:
        self.text += chunk.text
        self.token_ids.extend(chunk.token_ids)
        self.logprobs.extend(chunk.logprobs)
        self.prompt_logprobs = self.prompt_logprobs or chunk.prompt_logprobs
        self.finish = chunk.finish or self.finish

    def to_chunk(self) -> Chunk:
        """Return the whole output as one chunk."""
        return Chunk(tuple(self.token_ids), self.text, tuple(self.logprobs), self.prompt_logprobs, self.finish)


@dataclass(slots=True)
class Tally:
    """The tokens of one request so far: of its prompts, and of all its outputs."""

    prompt_tokens: int = 0
    output_tokens: int = 0


class Runner:
    """Runs jobs on one engine and measures them. Holds nothing between jobs."""

    def __init__(self, engine: Engine, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._metrics = metrics
        self._clock = clock
        self._tally = Tally()

    def counting(self, tally: Tally) -> Runner:
        """Return a runner for one request, whose tokens it counts into `tally`."""
        runner = Runner(self._engine, self._metrics, self._clock)
        runner._tally = tally
        return runner

    async def stream(self, jobs: Sequence[PromptJob]) -> AsyncGenerator[ChoiceChunk]:
        """Yield chunks as they come. An engine that dies before the first one is given one more try."""
        arrived_s = self._clock()
        with self._counting_failures(jobs):
            for attempt in range(1, NUM_ATTEMPTS + 1):
                is_begun = False
                try:
                    async with aclosing(self._run(jobs, arrived_s)) as chunks:
                        async for item in chunks:
                            is_begun = True
                            yield item
                    return
                except EngineDied as error:
                    if is_begun or attempt == NUM_ATTEMPTS:
                        raise
                    logger.info("the engine died before the first token of a request; it runs again: %s", error)

    async def collect(self, jobs: Sequence[PromptJob]) -> list[Written]:
        """Return the whole outputs. An engine that dies at any point is given one more try: nothing was sent yet."""
        with self._counting_failures(jobs):
            return await self._collect(jobs)

    async def _collect(self, jobs: Sequence[PromptJob]) -> list[Written]:
        arrived_s = self._clock()
        for attempt in range(1, NUM_ATTEMPTS + 1):
            outputs = [Written() for job in jobs for _ in job.choices]
            try:
                async with aclosing(self._run(jobs, arrived_s)) as chunks:
                    async for item in chunks:
                        outputs[item.choice_idx].add(item.chunk)
                break
            except EngineDied as error:
                if attempt == NUM_ATTEMPTS:
                    raise
                logger.info("the engine died under a request; it runs again: %s", error)
        return outputs

    async def _run(self, jobs: Sequence[PromptJob], arrived_s: float) -> AsyncGenerator[ChoiceChunk]:
        contexts: list[Context] = []
        num_open = 0
        includes_stop = any(job.includes_stop for job in jobs)  # they are of one request
        self._tally.prompt_tokens, self._tally.output_tokens = sum(len(job.token_ids) for job in jobs), 0
        try:
            generations = self._start(jobs, contexts)
            num_open = len(generations)
            async with aclosing(_merge(generations)) as chunks:
                timers = [OutputTimer(self._metrics, arrived_s) for _ in generations]
                async for item in chunks:
                    timers[item.choice_idx].see(item.chunk, self._clock())
                    self._tally.output_tokens += len(item.chunk.token_ids)
                    if item.chunk.finish is not None:
                        contexts[item.choice_idx].free()
                        num_open -= 1
                    yield _with_stop(item) if includes_stop else item
        except (asyncio.CancelledError, GeneratorExit):
            self._metrics.saw_cancelled(num_open)
            raise
        finally:
            for context in contexts:
                context.free()

    @contextmanager
    def _counting_failures(self, jobs: Sequence[PromptJob]) -> Iterator[None]:
        """Count a request that ends with an error, which names the request's field; not one that an engine's death did
        not end.
        """
        try:
            yield
        except KeaError as error:
            self._metrics.saw_failure(error.code)
            named = _with_field(error, jobs[0])  # all are of one request
            if named is error:
                raise
            raise named from error.__cause__

    def _start(self, jobs: Sequence[PromptJob], contexts: list[Context]) -> list[Generation]:
        """Create a context per choice (all but a prompt's first are forks) into `contexts`, and begin all outputs."""
        generations = []
        for job in jobs:
            root = self._engine.create_context(job.spec)
            contexts.append(root)
            root.append(job.token_ids)
            forks = []
            for _ in job.choices[1:]:
                forks.append(root.fork())
                contexts.append(forks[-1])
            generations += [
                context.generate(options) for context, options in zip([root, *forks], job.choices, strict=True)
            ]
        return generations


def _with_field(error: KeaError, job: PromptJob) -> KeaError:
    """Return an error about the constraint, which the engine calls by its kind, with the field of the request."""
    kinds = {options.constraint.kind for options in job.choices if options.constraint is not None}
    if job.constraint_field is None or error.param not in kinds:
        return error
    return error_from_dict(error.to_dict() | {"param": job.constraint_field})


def _with_stop(item: ChoiceChunk) -> ChoiceChunk:
    finish = item.chunk.finish
    if finish is None or not isinstance(finish.stop, str):
        return item
    return ChoiceChunk(item.choice_idx, item.chunk._replace(text=item.chunk.text + finish.stop))


async def _merge(generations: Sequence[Generation]) -> AsyncGenerator[ChoiceChunk]:
    """Yield the chunks of all generations as they come; the first error ends all."""
    if len(generations) == 1:
        async for chunk in generations[0]:
            yield ChoiceChunk(0, chunk)
        return
    queue: asyncio.Queue[ChoiceChunk | Exception | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(idx, generation, queue)) for idx, generation in enumerate(generations)]
    try:
        num_open = len(tasks)
        while num_open:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(idx: int, generation: Generation, queue: asyncio.Queue[ChoiceChunk | Exception | None]) -> None:
    try:
        async for chunk in generation:
            queue.put_nowait(ChoiceChunk(idx, chunk))
    except Exception as error:  # noqa: BLE001 - handed to the reader, which raises it
        queue.put_nowait(error)
    else:
        queue.put_nowait(None)

"""The engine's core: commands in, one step at a time, events out. Owns model, memory, batcher, sampler; knows no
prompts.

Single-threaded: a loop (`kea.cluster.loop`) calls `handle` and `step`. A fault while a step computes ends the
contexts of that step with `EngineFault`; the engine goes on.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from kea.engine.base import (
    Capabilities,
    ClearCache,
    Command,
    EngineInfo,
    Event,
    Generate,
    Generated,
    Snapshot,
    SnapshotTaken,
    TakeSnapshot,
)
from kea.engine.batcher import Batcher, StepWork, WorkItem
from kea.engine.config import EngineConfig, StepLimits, resolve_limits
from kea.engine.constraints import ConstraintCompiler
from kea.engine.contexts import ContextTable
from kea.engine.generation import GenerationState
from kea.engine.latency import LatencyModel
from kea.engine.machine import free_memory_bytes, resolve_device, set_num_threads
from kea.engine.runner import Runner
from kea.engine.sampling import Drawn, Sampler, token_logprobs
from kea.engine.state import ContextState
from kea.engine.stopping import OutputTracker
from kea.errors import EngineFault, KeaError
from kea.memory import KVMemory, MemoryConfig
from kea.models import DecoderModel, ProgressCallback, Tokenizer, load_model
from kea.types import Stopping

logger = logging.getLogger(__name__)

SEED_BITS = 64
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Which rows of a step's logits are for what: drawing (by item), and the prompt's log-probabilities (by item)."""

    logit_rows: list[int]
    draws: list[tuple[WorkItem, int]]
    prompts: list[tuple[WorkItem, int, int]]  # item, first and one past the last index into logit_rows


class EngineCore:
    """One model with its memory. Made by `load`; ends with the loop that drives it."""

    def __init__(self, model: DecoderModel, tokenizer: Tokenizer, limits: StepLimits, clock: Clock) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._clock = clock
        self._memory = KVMemory(MemoryConfig(limits.num_pages, limits.page_tokens))
        self._latency = LatencyModel()
        self._batcher = Batcher(limits, self._memory, self._latency)
        self._contexts = ContextTable(
            limits, model.facts.vocab_size, self._memory, self._batcher, start=self._start, clock=clock
        )
        self._runner = Runner(model, self._memory, limits.num_pages, limits.page_tokens)
        self._sampler = Sampler(model.facts.vocab_size, lambda: secrets.randbits(SEED_BITS))
        self._constraints = ConstraintCompiler(tokenizer)
        self._limits = limits
        self._eos_token_ids = tuple(dict.fromkeys((*model.facts.eos_token_ids, *tokenizer.eos_token_ids)))
        self._counters = _Counters()

    @classmethod
    def load(cls, config: EngineConfig, report: ProgressCallback | None = None) -> EngineCore:
        """Load model and tokenizer and size the page pool. Raises `ModelLoadFailed`, `Unsupported`,
        `InvalidRequest`.
        """
        set_num_threads(config.num_threads)
        tokenizer = Tokenizer.load(config.model, revision=config.revision)
        model = load_model(
            config.model,
            dtype=config.dtype,
            device=resolve_device(config.device),
            backend=config.backend,
            revision=config.revision,
            max_len=config.max_model_len,
            progress=report,
        )
        limits = resolve_limits(config, model.facts, free_memory_bytes(model.facts.device))
        return cls(model, tokenizer, limits, time.monotonic)

    @property
    def info(self) -> EngineInfo:
        facts = self._model.facts
        return EngineInfo(
            model=facts.name,
            max_model_len=self._limits.max_model_len,
            vocab_size=facts.vocab_size,
            eos_token_ids=self._eos_token_ids,
            page_tokens=self._limits.page_tokens,
            num_pages=self._limits.num_pages,
            max_num_seqs=self._limits.max_num_seqs,
            device=facts.device,
            dtype=facts.dtype,
            backend=facts.backend,
            capabilities=Capabilities(batch_invariant=facts.batch_invariant),
        )

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to compute or to tell."""
        return bool(self._batcher.num_running or self._batcher.num_waiting or self._contexts.events)

    def handle(self, command: Command) -> None:
        """Apply one command; what it has to tell comes out of the next `step`."""
        match command:
            case TakeSnapshot():
                if command.check:
                    self.check()
                self._contexts.events.append(SnapshotTaken(command.request_id, self.snapshot()))
            case ClearCache():
                self._memory.clear_cache()
            case _:
                self._contexts.apply(command)

    def step(self) -> list[Event]:
        """Compute one step and return what happened since the last one, in order."""
        started = self._clock()
        work = self._batcher.plan()
        if work.items:
            self._admit(work, started)
            try:
                self._compute(work, started)
            except Exception as error:
                logger.exception("a step failed")
                self._fail(work, EngineFault(f"The engine failed while it computed this request: {error!r}."))
        elif work.copies:
            self._runner.copy(work.copies)
        events, self._contexts.events = self._contexts.events, []
        return events

    def check(self) -> None:
        """Raise `AssertionError` where pages, tree, contexts and batch disagree."""
        self._memory.check()
        self._batcher.check(self._contexts.all)

    def snapshot(self) -> Snapshot:
        counters = self._counters
        return Snapshot(
            num_running=self._batcher.num_running,
            num_waiting=self._batcher.num_waiting,
            num_contexts=len(self._contexts),
            num_steps=counters.num_steps,
            prompt_tokens=counters.prompt_tokens,
            generation_tokens=counters.generation_tokens,
            num_preemptions=self._batcher.num_preemptions,
            num_finished=dict(counters.num_finished),
            memory=self._memory.snapshot(),
            latency=self._latency.snapshot(),
        )

    # One step

    def _admit(self, work: StepWork, now: float) -> None:
        for item in work.items:
            if item.context.generation is not None:
                item.context.generation.admit(now)

    def _compute(self, work: StepWork, started: float) -> None:
        rows = _select_rows(work)
        logits = self._runner.run(work, rows.logit_rows)
        for item, first, stop in rows.prompts:
            _score_prompt(item, logits[first:stop])
        drawn = self._draw(logits, rows)
        for item in work.items:
            self._batcher.complete(item)
        now = self._clock()
        self._count(work, now - started)
        for context, result in drawn:
            self._take(context, result, now)
        for item in work.items:
            if item.context.generation is None and item.context.num_pending <= 0:
                self._batcher.wake(item.context)

    def _draw(self, logits: torch.Tensor, rows: _Rows) -> list[tuple[ContextState, Drawn | KeaError]]:
        """Draw a token for every row that draws; a row whose constraint fails gets that error instead."""
        drawn: list[tuple[ContextState, Drawn | KeaError]] = []
        contexts, specs, indices = [], [], []
        for item, index in rows.draws:
            generation = item.context.generation
            assert generation is not None, "a row draws for a context that generates nothing"
            try:
                specs.append(generation.row())
            except KeaError as error:
                drawn.append((item.context, error))
            else:
                contexts.append(item.context)
                indices.append(index)
        if len(indices) != len(rows.logit_rows):
            logits = logits[indices]
        return drawn + list(zip(contexts, self._sampler.sample(logits, specs), strict=True))

    def _take(self, context: ContextState, drawn: Drawn | KeaError, now: float) -> None:
        """Give a drawn token to its generation; end the generation where it stops."""
        generation = context.generation
        assert generation is not None, "a token was drawn for a context that generates nothing"
        if isinstance(drawn, KeaError):
            self._contexts.fail(context, drawn)
            return
        try:
            chunk = generation.take(context, drawn, now)
        except KeaError as error:
            self._contexts.fail(context, error)
            return
        self._counters.generation_tokens += 1
        self._contexts.events.append(Generated(generation.generation_id, chunk))
        if chunk.finish is not None:
            self._counters.finished(chunk.finish.reason.value)
            self._contexts.end_generation(context)

    def _fail(self, work: StepWork, error: KeaError) -> None:
        for item in work.items:
            if item.context.error is None:
                self._contexts.fail(item.context, error)

    def _start(self, command: Generate, context: ContextState) -> GenerationState:
        options = command.options
        room = self._limits.max_model_len - len(context.tokens)
        stopping = _within(options.stopping, room)
        detokenizer = self._tokenizer.create_detokenizer(
            preceding=context.tokens, skip_special=options.skip_special_tokens
        )
        return GenerationState(
            command.generation_id,
            options,
            sampling=self._sampler.create_state(options.sampling, context.tokens),
            tracker=OutputTracker(stopping, self._eos_token_ids, detokenizer),
            constraint=self._constraints.compile(options.constraint) if options.constraint is not None else None,
            prompt_len=len(context.tokens),
            created_s=self._clock(),
        )

    def _count(self, work: StepWork, seconds: float) -> None:
        self._counters.num_steps += 1
        self._counters.prompt_tokens += sum(item.stop - item.start - item.draws for item in work.items)
        self._latency.observe(work.shape, seconds)


class _Counters:
    """What the engine did since its start."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.num_finished: dict[str, int] = {}

    def finished(self, reason: str) -> None:
        self.num_finished[reason] = self.num_finished.get(reason, 0) + 1


def _within(stopping: Stopping, room: int) -> Stopping:
    """Return the same ends for an output that has room for so many tokens."""
    if stopping.max_tokens <= room:
        return stopping
    return replace(stopping, max_tokens=room, min_tokens=min(stopping.min_tokens, room))


def _select_rows(work: StepWork) -> _Rows:
    """Choose the rows of the flattened batch whose logits are needed."""
    rows = _Rows([], [], [])
    row = 0
    for item in work.items:
        length = item.stop - item.start
        if item.context.spec.prompt_logprobs is not None and item.context.scores_until > item.start:
            first = len(rows.logit_rows)
            rows.logit_rows.extend(range(row, row + min(item.stop, item.context.scores_until) - item.start))
            rows.prompts.append((item, first, len(rows.logit_rows)))
        if item.draws:
            last = row + length - 1
            if not rows.logit_rows or rows.logit_rows[-1] != last:
                rows.logit_rows.append(last)
            rows.draws.append((item, len(rows.logit_rows) - 1))
        row += length
    return rows


def _score_prompt(item: WorkItem, logits: torch.Tensor) -> None:
    """Record the log-probability of every prompt token that follows a computed row."""
    context = item.context
    assert context.spec.prompt_logprobs is not None
    targets = context.tokens[item.start + 1 : item.start + 1 + len(logits)]
    entries = token_logprobs(logits, targets, [context.spec.prompt_logprobs] * len(targets))
    for offset, entry in enumerate(entries):
        context.prompt_logprobs[item.start + 1 + offset] = entry

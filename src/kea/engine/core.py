"""The engine's core: commands in, one step at a time, events out. Owns model, memory, batcher, sampler; knows no
prompts.

Single-threaded: a loop (`kea.cluster.loop`) calls `handle` and `step`. A fault while a step computes ends the
contexts of that step with `EngineFault`, and the engine goes on. A fault of what all contexts rely on (the plan, the
page copies, the prefix tree) leaves `step`: the loop ends.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from kea.engine.base import (
    Capabilities,
    ClearCache,
    Command,
    EngineInfo,
    Event,
    Generate,
    Snapshot,
    SnapshotTaken,
    TakeSnapshot,
)
from kea.engine.batcher import Batcher
from kea.engine.compiling import Compilations
from kea.engine.computing import StepComputer
from kea.engine.config import EngineConfig, StepLimits, resolve_limits
from kea.engine.constraints import ConstraintCompiler
from kea.engine.contexts import ContextTable
from kea.engine.counters import Counters
from kea.engine.draft import StepWork, WorkItem
from kea.engine.flight import DrawnRows, Flight
from kea.engine.generation import GenerationState
from kea.engine.latency import LatencyModel
from kea.engine.machine import free_memory_bytes, resolve_device, set_num_threads, use_device
from kea.engine.outputs import Outputs
from kea.engine.runner import Runner
from kea.engine.sampling import Sampler, create_order
from kea.engine.speculation import try_create_lookup
from kea.engine.standing import DecodeBatch
from kea.engine.state import ContextState
from kea.engine.stopping import Lanes, OutputTracker
from kea.errors import EngineFault, KeaError
from kea.memory import KVMemory, MemoryConfig
from kea.models import DecoderModel, ProgressCallback, Tokenizer, load_model, user_notes
from kea.types import Stopping

logger = logging.getLogger(__name__)

SEED_BITS = 64
POLL_S = 0.005
Clock = Callable[[], float]


class EngineCore:
    """One model with its memory. Made by `load`; ends with the loop that drives it."""

    def __init__(self, model: DecoderModel, tokenizer: Tokenizer, limits: StepLimits, clock: Clock) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._clock = clock
        self._memory = KVMemory(MemoryConfig(limits.num_pages, limits.page_tokens))
        self._latency = LatencyModel()
        self._runner = Runner(model, self._memory, limits.num_pages, limits.page_tokens, max_rows=limits.max_num_seqs)
        limits = replace(limits, can_draw=self._runner.can_draw and not limits.overlaps)
        self._batcher = Batcher(limits, self._memory, self._latency)
        self._contexts = ContextTable(
            limits, model.facts.vocab_size, self._memory, self._batcher, start=self._start, clock=clock
        )
        self._sampler = Sampler(model.facts.vocab_size, lambda: secrets.randbits(SEED_BITS))
        self._constraints = Compilations(ConstraintCompiler(tokenizer))
        self._limits = limits
        self._eos_token_ids = tuple(dict.fromkeys((*model.facts.eos_token_ids, *tokenizer.eos_token_ids)))
        self._counters = Counters()
        self._outputs = Outputs(self._contexts, self._batcher, self._counters, self._spoil)
        self._lanes = Lanes()
        self._computer = StepComputer(self._runner, self._sampler)
        self._flight: Flight | None = None  # the step that has not landed
        self._landed_s = 0.0

    @classmethod
    def load(cls, config: EngineConfig, report: ProgressCallback | None = None) -> EngineCore:
        """Load model and tokenizer and size the page pool. Raises `ModelLoadFailed`, `Unsupported`,
        `InvalidRequest`.
        """
        set_num_threads(config.num_threads)
        device = resolve_device(config.device)
        use_device(device)
        notes = user_notes()
        tokenizer = Tokenizer.load(config.model, revision=config.revision, notes=notes)
        model = load_model(
            config.model,
            dtype=config.dtype,
            device=device,
            backend=config.backend,
            quantize=config.quantize,
            kv_cache_dtype=config.kv_cache_dtype,
            revision=config.revision,
            max_len=config.max_model_len,
            progress=report,
            notes=notes,
        )
        limits = resolve_limits(config, model.facts, free_memory_bytes(model.facts.device))
        core = cls(model, tokenizer, limits, time.monotonic)
        if model.facts.device == "cpu":
            core._sampler.warm_up()
        return core

    @property
    def info(self) -> EngineInfo:
        facts, speculation = self._model.facts, self._limits.speculation
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
            kv_cache_dtype=facts.kv_dtype,
            backend=facts.backend,
            capabilities=Capabilities(batch_invariant=facts.batch_invariant),
            quantize=facts.quantize,
            tpot_objective_s=self._limits.tpot_objective_s,
            num_speculative_tokens=speculation.num_speculative_tokens if speculation is not None else 0,
        )

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to compute or to tell."""
        is_busy = self._batcher.num_running or self._batcher.num_waiting or self._flight is not None
        return bool(is_busy or self._contexts.events)

    @property
    def wait_s(self) -> float | None:
        """How long to wait for a command before the next `step`: not at all, a little, or (None) until there is one."""
        if self.has_work:
            return 0.0
        return POLL_S if self._contexts.is_stalled else None

    def handle(self, command: Command) -> None:
        """Apply one command; what it has to tell comes out of the next `step`."""
        self._batcher.settle()
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
        """Compute one step and return what happened since the last one, in order.

        Where steps overlap it is launched and lands in the next call: behind the launch of the step after it, if that
        can be planned before.
        """
        started = self._clock()
        self._contexts.poll()
        flight, self._flight = self._flight, None
        if flight is not None:
            ahead = self._batcher.try_plan_ahead()
            self._flight = None if ahead is None else self._launch(ahead, started, flight)
            self._land(flight, self._flight)
        if self._flight is None:
            work = self._batcher.plan()
            if isinstance(work, DecodeBatch):
                self._decode(work, started)
            else:
                self._flight = self._launch(work, started)
            if self._flight is not None and not self._limits.overlaps:
                self._land(self._flight)
                self._flight = None
        events, self._contexts.events = self._contexts.events, []
        return events

    def check(self) -> None:
        """Raise `AssertionError` where pages, tree, contexts and batch disagree."""
        self._batcher.settle()
        self._memory.check()
        self._batcher.check(self._contexts.all)

    def snapshot(self) -> Snapshot:
        self._batcher.settle()
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
            num_draft_tokens=counters.num_draft_tokens,
            num_accepted_tokens=counters.num_accepted_tokens,
        )

    # One step

    def _admit(self, items: Sequence[WorkItem], now: float) -> None:
        for item in items:
            generation = item.context.generation
            if generation is not None and generation.admitted_s is None:
                generation.admitted_s = now

    def _decode(self, batch: DecodeBatch, started: float) -> None:
        """Compute a step of a batch that stands, and let its outputs follow."""
        if batch.num_done == 0:
            self._runner.copy(batch.copies)
            self._admit(batch.items, started)
        try:
            if not self._runner.goes_on(batch):
                self._batcher.settle()
                self._runner.begin(batch, create_order(batch.states))
            tokens = self._runner.decode(batch)
        except Exception as error:  # noqa: BLE001 - told to these requests
            self._fail_step([batch.written(row) for row in range(len(batch.contexts))], error)
            return
        ends = self._outputs.take_batch(batch, tokens, self._clock())
        self._counters.num_steps += batch.num_rounds
        self._batcher.advance(batch, self._clock() - started)
        self._outputs.end_all(ends)

    def _launch(self, work: StepWork, started: float, before: Flight | None = None) -> Flight | None:
        """Begin to compute a step, behind one `before` that has not landed; None where there is nothing to wait for."""
        self._runner.copy(work.copies)
        if not work.items:
            return None
        self._admit(work.items, started)
        try:
            flight = self._computer.begin(work, None if before is None else before.drawn_ahead)
        except Exception as error:  # noqa: BLE001 - told to these requests
            self._fail_step(work.items, error)
            return None
        flight.launched_s = started
        if self._limits.overlaps:
            flight.launch()
        return flight

    def _land(self, flight: Flight, behind: Flight | None = None) -> None:
        """Wait for a step and take what it gave; what `behind` computes of those it ended means nothing."""
        if self._limits.overlaps:
            flight.land()
        try:
            unsound, drawn = flight.find_unsound(), flight.finish()
        except Exception as error:  # noqa: BLE001 - told to these requests
            self._fail_step(flight.items, error, flight.void)
            self._void_ended(flight, behind)
        else:
            self._conclude(flight, unsound, drawn, behind)
        for item in flight.items:
            if self._limits.overlaps:
                self._contexts.settle(item.context)
            if item.context.generation is None and item.context.num_pending <= 0:
                self._batcher.wake(item.context)

    def _conclude(self, flight: Flight, unsound: list[WorkItem], drawn: DrawnRows, behind: Flight | None) -> None:
        """Let pages, generations and counters follow a step that was computed."""
        for item in flight.items:
            if item not in unsound and not flight.is_void(item):
                self._batcher.complete(item)
        now, num_tokens = self._clock(), self._counters.generation_tokens
        for item in unsound:
            fault = self._spoil(item)
            if not flight.is_void(item):
                self._contexts.fail(item.context, fault)
        self._outputs.take_all(drawn, flight.draw_behind, now)
        self._void_ended(flight, behind)
        landed = self._clock()
        self._count(
            flight.work, landed - max(flight.launched_s, self._landed_s), self._counters.generation_tokens - num_tokens
        )
        self._landed_s = landed

    def _void_ended(self, flight: Flight, behind: Flight | None) -> None:
        """Let the step behind not count for contexts that ended, or go on with another token than it began with."""
        if behind is None:
            return
        late = flight.late
        for item in late:
            item.context.is_grounded = True
        ended = [item for item in flight.items if self._contexts.is_over(item.context)]
        behind.void.update(item.context.context_id for item in (*late, *ended))

    def _spoil(self, item: WorkItem) -> KeaError:
        """Wipe what is not finite. What was written must not reach, behind a mask, whoever has the page next: a weight
        of 0 times NaN is NaN. Return what the request is told.
        """
        self._runner.wipe(item)
        facts = self._model.facts
        narrow = "" if facts.kv_dtype == facts.dtype else f", or too large for keys and values in {facts.kv_dtype}"
        return EngineFault(f"The model computed numbers that are not finite{narrow}.")

    def _fail_step(self, items: Sequence[WorkItem], error: Exception, void: Collection[int] = ()) -> None:
        """Fail the contexts of items that were not computed, without what may have been written for them."""
        logger.error("a step failed", exc_info=error)
        fault = EngineFault(f"The engine failed while it computed this request: {error!r}.")
        for item in items:
            self._runner.wipe(item)
            if item.context.context_id not in void:
                self._contexts.fail(item.context, fault)

    def _start(self, command: Generate, context: ContextState, since: float) -> GenerationState | None:
        options = command.options
        constraint = None
        if options.constraint is not None:
            constraint = self._constraints.try_compile(options.constraint)
            if constraint is None:
                return None
        room = self._limits.max_model_len - len(context.tokens)
        stopping = _within(options.stopping, room)
        detokenizer = self._tokenizer.create_detokenizer(
            preceding=context.tokens, skip_special=options.skip_special_tokens
        )
        skip_special = options.skip_special_tokens
        lane = self._lanes.of(stopping, self._eos_token_ids, detokenizer, skip_special=skip_special)
        return GenerationState(
            command.generation_id,
            options,
            sampling=self._sampler.create_state(options.sampling, context.tokens),
            tracker=OutputTracker(stopping, self._eos_token_ids, detokenizer, lane),
            constraint=constraint,
            prompt_len=len(context.tokens),
            created_s=since,
            lookup=try_create_lookup(options.speculation or self._limits.speculation),
        )

    def _count(self, work: StepWork, seconds: float, num_tokens: int) -> None:
        self._counters.num_steps += 1
        self._counters.prompt_tokens += sum(item.stop - item.start - item.draws for item in work.items)
        self._counters.num_draft_tokens += sum(len(item.guesses) for item in work.items)
        self._latency.observe(work.shape, seconds)
        if work.speculates:
            self._batcher.note_decoded(len(work.items), num_tokens, seconds)


def _within(stopping: Stopping, room: int) -> Stopping:
    """Return the same ends for an output that has room for so many tokens."""
    if stopping.max_tokens <= room:
        return stopping
    return replace(stopping, max_tokens=room, min_tokens=min(stopping.min_tokens, room))

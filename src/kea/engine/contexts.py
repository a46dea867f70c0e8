"""Applies commands to contexts in the order in which they were issued. Owns the table of contexts and of generations.

What is issued behind a running generation waits for its end; `Free` and `Cancel` act at once. An operation that has no
answer of its own and fails marks its context: `ContextFailed` is emitted, and every generation that follows gets the
error. A generation whose grammar is still being compiled waits at the head of its context's operations. What would
change the pages of a context in a step that has not landed waits for that. Knows no torch and no batch: it tells the
batcher whom to consider.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import assert_never

from kea.engine.base import (
    Append,
    Cancel,
    ContextFailed,
    CreateContext,
    Drop,
    Event,
    Fork,
    Free,
    Generate,
    Generated,
    GenerationFailed,
    Operation,
    Truncate,
)
from kea.engine.batcher import Batcher
from kea.engine.config import StepLimits
from kea.engine.generation import GenerationState
from kea.engine.state import ContextState, Phase
from kea.errors import Cancelled, ContextLengthExceeded, EngineFault, InvalidRequest, KeaError
from kea.memory import KVMemory

logger = logging.getLogger(__name__)

ContextCommand = Operation | CreateContext | Free | Cancel
StartGeneration = Callable[[Generate, ContextState, float], GenerationState | None]


class ContextTable:
    """All contexts of an engine, by id.

    `start` makes the state of a generation that was asked for at a time in seconds; None: not yet, ask again at the
    next `poll`.
    """

    def __init__(
        self,
        limits: StepLimits,
        vocab_size: int,
        memory: KVMemory,
        batcher: Batcher,
        *,
        start: StartGeneration,
        clock: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._vocab_size = vocab_size
        self._memory = memory
        self._batcher = batcher
        self._start = start
        self._clock = clock
        self._contexts: dict[int, ContextState] = {}
        self._generating: dict[int, ContextState] = {}
        self._queued: dict[int, ContextState] = {}  # by generation, behind other operations
        self._stalled: dict[int, float] = {}  # by context: since when its next generation waits for its grammar
        self._advancing: deque[ContextState] = deque()
        self._ending: set[int] = set()  # contexts whose generation is over, but whose step has not landed
        self._held: dict[int, list[Free | Cancel]] = {}  # by context, until its step has landed
        self._num_created = 0
        self.events: list[Event] = []

    def __len__(self) -> int:
        return len(self._contexts)

    @property
    def all(self) -> list[ContextState]:
        return list(self._contexts.values())

    @property
    def is_stalled(self) -> bool:
        """Whether a generation waits for its grammar."""
        return bool(self._stalled)

    def poll(self) -> None:
        """Let the generations begin whose grammar is there."""
        for context_id in list(self._stalled):
            self._advance(self._contexts[context_id])

    def apply(self, command: ContextCommand) -> None:
        """Apply a command, or queue it behind the context's running generation."""
        match command:
            case CreateContext():
                self._create(command)
            case Free() | Cancel() if self._must_land(command):
                pass
            case Free():
                self._free(command)
            case Cancel():
                self._cancel(command)
            case _:
                self._route(command)

    def end_generation(self, context: ContextState) -> None:
        """Close a context's generation (its events are already emitted) and run what waited behind it."""
        assert context.generation is not None
        if context.num_flying:
            context.is_grounded = True
            self._ending.add(context.context_id)
            return
        del self._generating[context.generation.generation_id]
        context.generation = None
        self._truncate_pages(context, len(context.tokens))
        self._advance(context)

    def fail(self, context: ContextState, error: KeaError) -> None:
        """End a context's generation with an error, and everything issued on it after."""
        if context.error is None:
            self._poison(context, error)

    def settle(self, context: ContextState) -> None:
        """Catch up on what waited for the context's step to land."""
        if context.num_flying or context.phase is Phase.CLOSED:
            return
        context.is_grounded = False
        if context.context_id in self._ending:
            self._ending.remove(context.context_id)
            if context.generation is not None:
                self.end_generation(context)
        if context.error is not None and context.phase in (Phase.WAITING, Phase.RUNNING):
            self._batcher.retire(context)
        for command in self._held.pop(context.context_id, ()):
            self.apply(command)
        if context.operations and context.generation is None:
            self._advance(context)

    def is_over(self, context: ContextState) -> bool:
        """Whether what further steps compute of a context means nothing: it failed, or its generation has ended."""
        return context.error is not None or context.context_id in self._ending

    # Commands that act at once

    def _must_land(self, command: Free | Cancel) -> bool:
        """Hold a command for a context whose step has not landed, and keep the context out of further steps."""
        if isinstance(command, Free):
            context = self._contexts.get(command.context_id)
        else:
            context = self._generating.get(command.generation_id)
        if context is None or not context.num_flying:
            return False
        context.is_grounded = True
        self._held.setdefault(context.context_id, []).append(command)
        return True

    def _create(self, command: CreateContext) -> None:
        self._num_created += 1
        pages = self._memory.open(command.spec.tenant)
        self._contexts[command.context_id] = ContextState(command.context_id, self._num_created, command.spec, pages)

    def _free(self, command: Free) -> None:
        context = self._contexts.pop(command.context_id, None)
        if context is None:
            return
        self._poison(context, Cancelled("The context was freed."), tell=False)
        self._batcher.forget(context)

    def _cancel(self, command: Cancel) -> None:
        context = self._generating.get(command.generation_id)
        if context is not None:
            assert context.generation is not None
            self.events.append(Generated(command.generation_id, context.generation.cancel(context, self._clock())))
            self.end_generation(context)
            return
        context = self._queued.pop(command.generation_id, None)
        if context is not None:
            kept = [op for op in context.operations if getattr(op, "generation_id", None) != command.generation_id]
            context.operations = deque(kept)
            self._fail_generation(command.generation_id, Cancelled("The generation was cancelled before it began."))
            self._advance(context)

    # Commands that keep their order

    def _route(self, command: Operation) -> None:
        context = self._contexts.get(command.context_id)
        if context is None:
            self._refuse(command, EngineFault(f"There is no context {command.context_id} on this engine."))
            return
        if isinstance(command, Fork):
            self._contexts[command.child_id] = self._unborn(command, context)
        if context.error is not None:
            for child in self._refuse(command, context.error):
                self._poison(child, context.error)
        else:
            is_busy = context.is_busy
            context.operations.append(command)
            if isinstance(command, Generate):
                self._queued[command.generation_id] = context
            if not is_busy:
                self._advance(context)

    def _unborn(self, command: Fork, parent: ContextState) -> ContextState:
        self._num_created += 1
        pages = self._memory.open(parent.spec.tenant)
        return ContextState(command.child_id, self._num_created, parent.spec, pages, phase=Phase.UNBORN)

    def _advance(self, context: ContextState) -> None:
        """Run the context's operations up to the next generation, and those of the forks that they give birth to."""
        self._advancing.append(context)
        if len(self._advancing) > 1:
            return  # called from the loop below: a chain of forks must not become a chain of calls
        while self._advancing:
            self._run_operations(self._advancing[0])
            self._advancing.popleft()

    def _run_operations(self, context: ContextState) -> None:
        since = self._stalled.pop(context.context_id, None)
        is_ready = context.phase not in (Phase.UNBORN, Phase.CLOSED)
        while is_ready and context.operations and context.generation is None and context.error is None:
            if context.num_flying and not isinstance(context.operations[0], (Append, Generate)):
                context.is_grounded = True
                break
            command = context.operations.popleft()
            if not isinstance(command, Generate):
                self._run(context, command)
            elif not self._try_generate(context, command, self._clock() if since is None else since):
                break
            since = None
        if is_ready:
            self._batcher.wake(context)

    def _run(self, context: ContextState, command: Append | Fork | Truncate | Drop) -> None:
        try:
            match command:
                case Append():
                    self._append(context, command)
                case Fork():
                    self._fork(context, command)
                case Truncate():
                    self._truncate(context, command.length)
                case Drop():
                    self._drop(context, command)
                case _:
                    assert_never(command)
        except Exception as error:  # noqa: BLE001 - one request's fault is told to that request
            fault = self._explain(error)
            for child in self._refuse(command, fault):
                self._poison(child, fault)
            self._poison(context, fault)

    def _try_generate(self, context: ContextState, command: Generate, since: float) -> bool:
        """Begin a generation; False if its grammar is not there yet, and it was put back."""
        try:
            generation = self._generate(context, command, since)
        except Exception as error:  # noqa: BLE001 - one request's fault is told to that request
            del self._queued[command.generation_id]
            self._fail_generation(command.generation_id, self._explain(error))
            return True
        if generation is None:
            context.operations.appendleft(command)
            self._stalled[context.context_id] = since
            return False
        del self._queued[command.generation_id]
        context.generation = generation
        self._generating[command.generation_id] = context
        return True

    def _explain(self, error: Exception) -> KeaError:
        """Return what a request is told; a fault that left the memory inconsistent is one of the whole engine."""
        if isinstance(error, KeaError):
            return error
        logger.error("an operation failed", exc_info=error)
        self._memory.check()
        return EngineFault(f"The engine failed at this operation: {error!r}.")

    def _append(self, context: ContextState, command: Append) -> None:
        length = len(context.tokens) + len(command.token_ids)
        if length > self._limits.max_model_len:
            raise ContextLengthExceeded(
                f"The context would hold {length} tokens; this engine holds at most {self._limits.max_model_len}.",
                param="prompt",
            )
        if command.token_ids and not 0 <= min(command.token_ids) <= max(command.token_ids) < self._vocab_size:
            wrong = next(t for t in command.token_ids if not 0 <= t < self._vocab_size)
            raise InvalidRequest(
                f"Token id {wrong} does not exist; the vocabulary has ids 0 to {self._vocab_size - 1}.", param="prompt"
            )
        context.tokens.extend(command.token_ids)

    def _generate(self, context: ContextState, command: Generate, since: float) -> GenerationState | None:
        if not context.tokens:
            raise InvalidRequest(
                "Nothing was appended; a generation needs at least one token before it.", param="prompt"
            )
        if len(context.tokens) >= self._limits.max_model_len:
            raise ContextLengthExceeded(
                f"The context is full: it holds {len(context.tokens)} tokens, as many as this engine can.",
                param="prompt",
            )
        generation = self._start(command, context, since)
        if context.pages.num_computed == len(context.tokens):  # by a fork or a truncation: the last logits are gone
            self._truncate_pages(context, len(context.tokens) - 1)
        return generation

    def _fork(self, context: ContextState, command: Fork) -> None:
        child = self._contexts.get(command.child_id)
        if child is None:
            return  # freed before it was born
        at = len(context.tokens) if command.at is None else command.at
        if not 0 <= at <= len(context.tokens):
            error = InvalidRequest(f"fork at {at} is outside the context's {len(context.tokens)} tokens.", param="at")
            child.move(Phase.IDLE)
            self._poison(child, error)
            return
        child.inherit(context, at)
        pages, copies = self._memory.fork(context.pages, child.num_reusable)
        self._memory.free(child.pages)
        child.pages = pages
        self._batcher.order(copies)
        child.move(Phase.IDLE)
        self._advance(child)

    def _truncate(self, context: ContextState, length: int) -> None:
        if not 0 <= length <= len(context.tokens):
            raise InvalidRequest(
                f"truncate to {length} is outside the context's {len(context.tokens)} tokens.", param="length"
            )
        context.cut(length)
        self._truncate_pages(context, context.num_reusable)

    def _truncate_pages(self, context: ContextState, length: int) -> None:
        self._batcher.order(self._memory.truncate(context.pages, length))

    def _drop(self, context: ContextState, command: Drop) -> None:
        start, stop = command.start, command.stop
        if not 0 <= start < stop <= len(context.tokens):
            raise InvalidRequest(
                f"drop of [{start}, {stop}) is outside the context's {len(context.tokens)} tokens.", param="start"
            )
        if stop == len(context.tokens):
            self._truncate(context, start)
        else:
            self._memory.drop(context.pages, start, stop)

    # Failures

    def _poison(self, context: ContextState, error: KeaError, *, tell: bool = True) -> None:
        """Fail the running generation and everything queued, forks too; the contexts refuse what follows."""
        failing = deque([context])
        while failing:
            failed = failing.popleft()
            failed.error = error
            self._stalled.pop(failed.context_id, None)
            if tell or failed is not context:
                self.events.append(ContextFailed(failed.context_id, error))
            if failed.generation is not None:
                self._fail_generation(failed.generation.generation_id, error)
                del self._generating[failed.generation.generation_id]
                failed.generation = None
            while failed.operations:
                failing.extend(self._refuse(failed.operations.popleft(), error))
            if failed.phase in (Phase.WAITING, Phase.RUNNING) and not failed.num_flying:
                self._batcher.retire(failed)

    def _refuse(self, command: Operation, error: KeaError) -> list[ContextState]:
        """Answer a command on a failed or missing context; return the child that fails with it, if it is a fork."""
        if isinstance(command, Generate):
            self._queued.pop(command.generation_id, None)
            self._fail_generation(command.generation_id, error)
        child = self._contexts.get(command.child_id) if isinstance(command, Fork) else None
        if child is None:
            return []
        child.move(Phase.IDLE)
        return [child]

    def _fail_generation(self, generation_id: int, error: KeaError) -> None:
        self.events.append(GenerationFailed(generation_id, error))

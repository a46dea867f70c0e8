"""Applies commands to contexts in the order in which they were issued. Owns the table of contexts and of generations.

What is issued behind a running generation waits for its end; `Free` and `Cancel` act at once. An operation that has no
answer of its own and fails marks its context: `ContextFailed` is emitted, and every generation that follows gets the
error. Knows no torch and no batch: it tells the batcher whom to consider.
"""

from __future__ import annotations

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

ContextCommand = Operation | CreateContext | Free | Cancel
StartGeneration = Callable[[Generate, ContextState], GenerationState]


class ContextTable:
    """All contexts of an engine, by id. `start` makes the state of a new generation (it may raise a `KeaError`)."""

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
        self._num_created = 0
        self.events: list[Event] = []

    def __len__(self) -> int:
        return len(self._contexts)

    @property
    def all(self) -> list[ContextState]:
        return list(self._contexts.values())

    def apply(self, command: ContextCommand) -> None:
        """Apply a command, or queue it behind the context's running generation."""
        match command:
            case CreateContext():
                self._create(command)
            case Free():
                self._free(command)
            case Cancel():
                self._cancel(command)
            case _:
                self._route(command)

    def end_generation(self, context: ContextState) -> None:
        """Close a context's generation (its events are already emitted) and run what waited behind it."""
        assert context.generation is not None
        del self._generating[context.generation.generation_id]
        context.generation = None
        self._truncate_pages(context, len(context.tokens))
        self._advance(context)

    def fail(self, context: ContextState, error: KeaError) -> None:
        """End a context's generation with an error, and everything issued on it after."""
        self._poison(context, error)

    # Commands that act at once

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
        for other in self._contexts.values():
            queued = [
                op for op in other.operations if isinstance(op, Generate) and op.generation_id == command.generation_id
            ]
            for operation in queued:
                other.operations.remove(operation)
                self._fail_generation(
                    operation.generation_id, Cancelled("The generation was cancelled before it began.")
                )

    # Commands that keep their order

    def _route(self, command: Operation) -> None:
        context = self._contexts.get(command.context_id)
        if context is None:
            self._refuse(command, EngineFault(f"There is no context {command.context_id} on this engine."))
            return
        if isinstance(command, Fork):
            self._contexts[command.child_id] = self._unborn(command, context)
        if context.error is not None:
            self._refuse(command, context.error)
        elif context.is_busy:
            context.operations.append(command)
        else:
            self._run(context, command)
            self._batcher.wake(context)

    def _unborn(self, command: Fork, parent: ContextState) -> ContextState:
        self._num_created += 1
        pages = self._memory.open(parent.spec.tenant)
        return ContextState(command.child_id, self._num_created, parent.spec, pages, phase=Phase.UNBORN)

    def _advance(self, context: ContextState) -> None:
        """Run the queued operations up to the next generation, then let the batcher consider the context."""
        while context.operations and context.generation is None and context.error is None:
            self._run(context, context.operations.popleft())
        if context.phase is not Phase.CLOSED:
            self._batcher.wake(context)

    def _run(self, context: ContextState, command: Operation) -> None:
        try:
            match command:
                case Append():
                    self._append(context, command)
                case Generate():
                    self._generate(context, command)
                case Fork():
                    self._fork(context, command)
                case Truncate():
                    self._truncate(context, command.length)
                case Drop():
                    self._drop(context, command)
                case _:
                    assert_never(command)
        except KeaError as error:
            if isinstance(command, Generate):
                self._fail_generation(command.generation_id, error)
            else:
                self._poison(context, error)

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

    def _generate(self, context: ContextState, command: Generate) -> None:
        if not context.tokens:
            raise InvalidRequest(
                "Nothing was appended; a generation needs at least one token before it.", param="prompt"
            )
        if len(context.tokens) >= self._limits.max_model_len:
            raise ContextLengthExceeded(
                f"The context is full: it holds {len(context.tokens)} tokens, as many as this engine can.",
                param="prompt",
            )
        generation = self._start(command, context)
        if context.pages.num_computed == len(
            context.tokens
        ):  # a fork or a truncation: the last token's logits are gone
            self._truncate_pages(context, len(context.tokens) - 1)
        generation.cached_tokens = context.pages.num_computed
        context.generation = generation
        self._generating[command.generation_id] = context

    def _fork(self, context: ContextState, command: Fork) -> None:
        child = self._contexts.get(command.child_id)
        if child is None:
            return  # freed before it was born
        at = len(context.tokens) if command.at is None else command.at
        if not 0 <= at <= len(context.tokens):
            error = InvalidRequest(f"fork at {at} is outside the context's {len(context.tokens)} tokens.", param="at")
            self._bear(child)
            self._poison(child, error)
            return
        child.tokens = context.tokens[:at]
        pages, copies = self._memory.fork(context.pages, at)
        self._memory.free(child.pages)
        child.pages = pages
        self._batcher.order(copies)
        self._bear(child)
        self._advance(child)

    def _bear(self, child: ContextState) -> None:
        child.move(Phase.IDLE)

    def _truncate(self, context: ContextState, length: int) -> None:
        if not 0 <= length <= len(context.tokens):
            raise InvalidRequest(
                f"truncate to {length} is outside the context's {len(context.tokens)} tokens.", param="length"
            )
        del context.tokens[length:]
        self._truncate_pages(context, length)

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
        """Fail the running generation and everything queued; the context refuses what follows."""
        context.error = error
        if tell:
            self.events.append(ContextFailed(context.context_id, error))
        if context.generation is not None:
            self._fail_generation(context.generation.generation_id, error)
            del self._generating[context.generation.generation_id]
            context.generation = None
        while context.operations:
            self._refuse(context.operations.popleft(), error)
        if context.phase in (Phase.WAITING, Phase.RUNNING):
            self._batcher.retire(context)

    def _refuse(self, command: Operation, error: KeaError) -> None:
        """Answer a command on a failed or missing context: only a generation or a child has somebody waiting for it."""
        if isinstance(command, Generate):
            self._fail_generation(command.generation_id, error)
        elif isinstance(command, Fork):
            child = self._contexts.get(command.child_id)
            if child is not None:
                self._bear(child)
                self._poison(child, error)

    def _fail_generation(self, generation_id: int, error: KeaError) -> None:
        self.events.append(GenerationFailed(generation_id, error))

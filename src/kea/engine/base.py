"""The engine's contract: contexts, the commands and events that cross to it, its snapshot. Knows no torch, no programs.

A *context* is the KV of a token sequence. Everything above the engine (chat, semantic calls, retrieval, streaming) is
written against `Engine` and `Context`; everything below against `Command` and `Event`, which a channel carries to the
engine's thread or process. Operations of one context run in the order in which they were issued: what is issued
behind a running generation waits for its end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from kea.errors import KeaError
from kea.memory.base import MemorySnapshot
from kea.types import Chunk, GenerateOptions


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do; an operation that it lacks raises `Unsupported`, nothing is emulated."""

    operations: frozenset[str] = frozenset({"append", "generate", "fork", "truncate", "drop"})
    prompt_logprobs: bool = True
    constraints: bool = True
    batch_invariant: bool = False


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine runs. `max_model_len` in tokens, already bounded by its memory; `page_tokens` tokens per page.

    `quantize`: what the weights are rounded to (None: nothing). `tpot_objective_s` and `num_speculative_tokens` are the
    engine's own settings; a generation may ask for other guesses.
    """

    model: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    page_tokens: int
    num_pages: int
    max_num_seqs: int
    device: str
    dtype: str
    kv_cache_dtype: str
    backend: str
    capabilities: Capabilities = field(default_factory=Capabilities)
    quantize: str | None = None
    tpot_objective_s: float | None = None
    num_speculative_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ContextSpec:
    """How a context is made. `tenant` salts the prefix tree: KV is shared within one tenant only.

    `priority`: smaller is earlier. `order` breaks ties (the arrival of the application, then of the call). With
    `prompt_logprobs` (alternatives per token) the prompt is computed whole, and the first chunk of the first generation
    carries one entry per appended token.
    """

    tenant: str = ""
    priority: int = 0
    order: float = 0.0
    prompt_logprobs: int | None = None


# Commands: what goes to the engine. Ids are made by the sender and never reused.
@dataclass(frozen=True, slots=True)
class CreateContext:
    context_id: int
    spec: ContextSpec


@dataclass(frozen=True, slots=True)
class Append:
    context_id: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Generate:
    context_id: int
    generation_id: int
    options: GenerateOptions


@dataclass(frozen=True, slots=True)
class Fork:
    """Make `child_id` from the first `at` tokens of the context (all of them when None), as they are at this point."""

    context_id: int
    child_id: int
    at: int | None


@dataclass(frozen=True, slots=True)
class Truncate:
    context_id: int
    length: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Hide the tokens [start, stop) from every token computed later. Later tokens keep their positions."""

    context_id: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Free:
    """End the context at once, also in the middle of a generation (which then ends as cancelled)."""

    context_id: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a generation at the next step; its context stays."""

    generation_id: int


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    request_id: int
    check: bool = False


@dataclass(frozen=True, slots=True)
class ClearCache:
    """Forget every cached page that no context uses."""


Operation = Append | Generate | Fork | Truncate | Drop
"""What runs in order on a context, behind a running generation."""

Command = Operation | CreateContext | Free | Cancel | TakeSnapshot | ClearCache


# Events: what comes back.
class Generated(NamedTuple):
    generation_id: int
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class GenerationFailed:
    generation_id: int
    error: KeaError


@dataclass(frozen=True, slots=True)
class ContextFailed:
    """An operation that has no answer of its own failed (a truncate past the end); the context refuses what follows."""

    context_id: int
    error: KeaError


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    request_id: int
    snapshot: Snapshot


Event = Generated | GenerationFailed | ContextFailed | SnapshotTaken


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step's time depends on.

    `prefill_tokens`: tokens of prefill chunks. `kv_tokens`: the lengths of all sequences after the step, summed.
    `prefill_pairs`: query-key pairs of the chunks: n * context + n * (n + 1) / 2 for n tokens behind a context. A burst
    is a step of several `num_rounds`, whose first one the rest describes.
    """

    prefill_tokens: int
    num_sequences: int
    kv_tokens: int
    prefill_pairs: float = 0.0
    num_rounds: int = 1


@dataclass(frozen=True, slots=True)
class LatencySnapshot:
    """The fitted step time: the sum of the coefficients, each times its count of `StepShape`, and `base_s`.

    `median_error_ratio` is the median of |predicted - measured| / measured over recent steps; None before any fit.
    """

    base_s: float
    per_prefill_token_s: float
    per_sequence_s: float
    per_kv_token_s: float
    num_samples: int
    median_error_ratio: float | None
    per_prefill_pair_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The engine's state at one moment, and its counters since the start.

    `num_draft_tokens` guesses of speculating generations were verified, and `num_accepted_tokens` of them were right.
    """

    num_running: int
    num_waiting: int
    num_contexts: int
    num_steps: int
    prompt_tokens: int
    generation_tokens: int
    num_preemptions: int
    num_finished: dict[str, int]
    memory: MemorySnapshot
    latency: LatencySnapshot
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0


class Generation(Protocol):
    """A running generation: an async iterator of chunks. The last chunk carries `finish`; an error is raised
    instead.
    """

    def __aiter__(self) -> AsyncIterator[Chunk]: ...

    def cancel(self) -> None: ...


class Context(Protocol):
    """The KV of a token sequence on one engine. Made by `Engine.create_context`; its maker frees it.

    Operations return at once and run in order. An operation that fails raises from the generation that follows it.
    """

    def append(self, token_ids: Sequence[int]) -> None: ...

    def generate(self, options: GenerateOptions) -> Generation: ...

    def fork(self, at: int | None = None) -> Context: ...

    def truncate(self, length: int) -> None: ...

    def drop(self, start: int, stop: int) -> None: ...

    def free(self) -> None: ...


class Engine(Protocol):
    """One model on one device, somewhere (this process, a worker process, another machine)."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def is_alive(self) -> bool:
        """Whether commands are being served now; False while the engine restarts, or when it is gone for good."""
        ...

    def create_context(self, spec: ContextSpec) -> Context: ...

    async def snapshot(self, *, check: bool = False) -> Snapshot: ...

    async def close(self) -> None: ...

"""The attention seam: what a step asks of a backend. Owns the plan's types and the backend's contract.

Attention runs over a list of *runs*: stretches of one context's positions, each giving a partial result and its
log-sum-exp, merged exactly. Dense causal attention is one run; a dropped span is the gap between two; a window is a run
with a left mask. Knows no requests, no models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from kea.errors import Unsupported

if TYPE_CHECKING:
    import torch


class Run(NamedTuple):
    """The positions [start, stop) of a context, seen by a query at position t where they are at most t.

    With `left`, only those with t - position <= left are seen (left = w - 1 for a window of w keys with itself). With
    `pinned`, a query beyond that position sees the run as if it stood there: it is rotated back by the difference, and
    what is visible follows from there (the sinks of StreamingLLM: pinned = S + R). The layer then has a `rotary`.
    """

    start: int
    stop: int
    left: int | None = None
    pinned: int | None = None


class SequencePlan(NamedTuple):
    """One context's part of a step.

    Its queries are the rows [row_start, row_start + num_queries) of the flattened batch, at the positions `position`,
    `position` + 1, ... Its key at position j lies in slot page_table[j // page_tokens] * page_tokens + j % page_tokens;
    a page in no run may be -1. The runs are disjoint, ordered, and the last one ends at the last query's position + 1.
    """

    row_start: int
    num_queries: int
    position: int
    page_table: tuple[int, ...]
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The attention of one step: every context's part, and the slot of each row's new key and value ([T] int64)."""

    sequences: tuple[SequencePlan, ...]
    slots: torch.Tensor
    page_tokens: int


@dataclass(frozen=True, slots=True)
class Rotary:
    """How a layer rotates its queries: radians per position, [D / 2], of the dimensions [first, first + D).

    A dimension's partner is D / 2 away, or its neighbour (`pairs`).
    """

    frequencies: tuple[float, ...]
    pairs: bool = False
    first: int = 0


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """The shape of one layer's attention and what the model adds to it.

    `window`: keys visible to a query, itself included (transformers' `sliding_window`). `softcap`: logits become
    softcap * tanh(logits / softcap). A model with learned sink logits (gpt-oss) passes them per call. `rotary` is
    needed where a plan has pinned runs.
    """

    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    rotary: Rotary | None = None


def has_pinned(sequences: Sequence[SequencePlan]) -> bool:
    return any(run.pinned is not None for sequence in sequences for run in sequence.runs)


def check_unpinned(plan: StepPlan, backend: str) -> None:
    """Raise `Unsupported` where a run is pinned, for a backend that does not rotate queries."""
    if has_pinned(plan.sequences):
        raise Unsupported(f"The backend {backend!r} does not rotate queries, which pinned runs of a context need.")


def require_rotary(spec: LayerSpec) -> Rotary:
    """Return the layer's rotary; `Unsupported` where it has none and a run is pinned."""
    if spec.rotary is None:
        raise Unsupported("A run is pinned to a position, and the layer's rotary frequencies are not known.")
    return spec.rotary


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's KV memory: keys [num_slots, KV, Dk], values [num_slots, KV, Dv]; slot = page * page_tokens + i.

    Rows of int8 are longer by their scale, see `kea.attention.storage`.
    """

    keys: torch.Tensor
    values: torch.Tensor


class PreparedPlan(Protocol):
    """One step's attention, ready to be run layer by layer; lives as long as the step.

    Holds what is the same in every layer (gather indices, masks), computed once.
    """

    def attend(
        self,
        spec: LayerSpec,
        query: torch.Tensor,  # [T, H, Dk], after rotary
        key: torch.Tensor,  # [T, KV, Dk], after rotary
        value: torch.Tensor,  # [T, KV, Dv]
        cache: LayerCache,
        *,
        sinks: torch.Tensor | None = None,  # [H] logits that enter the softmax denominator once
    ) -> torch.Tensor:  # [T, H, Dv]
        """Write `key` and `value` to the plan's slots of `cache`, then attend. A query that sees no key gives zeros."""
        ...


@runtime_checkable
class WritingPlan(PreparedPlan, Protocol):
    """A prepared plan that also attends over keys and values which the caller has written to its slots itself."""

    @property
    def slots(self) -> torch.Tensor:
        """The slot of each row's new key and value [T] int64; -1: none, the row is padding."""
        ...

    def attend_written(
        self, spec: LayerSpec, query: torch.Tensor, cache: LayerCache, *, sinks: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attend as `attend` does; the rows' keys and values are in the cache already."""
        ...


class AttentionBackend(Protocol):
    """Writes the step's keys and values into the cache and attends over the plan's runs.

    `batch_invariant` says whether a row's result is bitwise the same whatever else is in the batch.
    """

    name: str
    batch_invariant: bool

    def prepare(self, plan: StepPlan) -> PreparedPlan:
        """Compute what every layer of this step shares. One prepared plan is in use at a time per backend."""
        ...


@dataclass(frozen=True, slots=True)
class StaticShape:
    """The room of a static plan: rows, entries of page tables in all, and tokens per page. `is_simple`: for steps of
    single queries of contexts that share nothing; a backend may spare what others need.
    """

    num_rows: int
    num_pages: int
    page_tokens: int
    is_simple: bool


class StaticPlan(PreparedPlan, Protocol):
    """A prepared plan in fixed memory, so that a captured graph of `attend` runs any step that fits.

    Lives as long as the graph. Rows that a step leaves over become zeros, and their slots, -1, take no keys.
    """

    def try_fill(self, plan: StepPlan) -> bool:
        """Plan a step into the fixed memory; False where it has no room, and nothing is changed. Not the slots: the
        caller fills those of the plan's creation.
        """
        ...


class CapturableBackend(AttentionBackend, Protocol):
    """A backend whose launches can be captured in a CUDA graph and replayed for other steps."""

    def is_simple(self, plan: StepPlan) -> bool:
        """Say whether a step is one as `StaticShape.is_simple` says."""
        ...

    def create_static(
        self, shape: StaticShape, specs: Sequence[LayerSpec], dtype: torch.dtype, slots: torch.Tensor
    ) -> StaticPlan:
        """Return a plan without content for layers of these specs; `slots` [num_rows] int64 is the caller's."""
        ...

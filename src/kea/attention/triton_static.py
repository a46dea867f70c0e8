"""Plans of the backend `triton` in fixed memory: what a captured CUDA graph reads anew at every replay.

Owns the device memory of the plan and of its partial results. Knows no graphs, no models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from kea.attention.base import LayerCache, LayerSpec, StaticShape, StepPlan
from kea.attention.triton_launch import Launch, LayerCall, attend_layer, write_layer
from kea.attention.triton_state import DeviceState
from kea.attention.triton_step import StepWork
from kea.attention.triton_tiles import work_key
from kea.attention.triton_work import ENTRY_FIELDS, ITEM_FIELDS, MERGE_FIELDS, Budget, Int32, Work, WorkKey

NUM_ARRAYS = 4  # of one kind of layer
PAGES_COLUMN = 2  # of an item
NO_ROW = -1


@dataclass(frozen=True, slots=True)
class Room:
    """How many items, entries and merges a kind of layer has room for."""

    narrow: int
    wide: int
    entries: int
    merges: int


class TritonStaticPlan:
    """A prepared plan whose tensors and launches never change; `try_fill` gives it the next step's content.

    What a step does not use of its room are items without queries and merges of nothing: its last rows become zeros.
    Lives as long as the graph that was captured with it. The caller fills `slots` [num_rows], with -1 for such rows.
    """

    def __init__(
        self,
        shape: StaticShape,
        specs: tuple[LayerSpec, ...],
        dtype: torch.dtype,
        slots: torch.Tensor,
        state: DeviceState,
    ) -> None:
        self._shape = shape
        self._state = state
        self._slots = slots
        self._kinds = tuple(dict.fromkeys(work_key(spec, dtype, state.machine) for spec in specs))
        self._rooms = [room_of(shape, kind, state.machine.budget) for kind in self._kinds]
        num_parts = max(room.entries for room in self._rooms)
        widest = max(specs, key=lambda spec: spec.num_heads * (spec.value_dim + 1))
        self._memory = state.parts(num_parts, widest)
        self._num_parts = num_parts
        empty = [empty_work(room) for room in self._rooms]
        arrays = pack(empty)
        self._buffer = torch.zeros(
            sum(a.size + 3 for a in arrays) + shape.num_pages, dtype=torch.int32, device=slots.device
        )
        tensors = state.staging.upload(arrays, self._buffer)
        self._launches: dict[WorkKey, Launch] = {}
        for i, kind in enumerate(self._kinds):
            own = tensors[NUM_ARRAYS * i : NUM_ARRAYS * (i + 1)]
            pages = self._buffer[tensors[-1].storage_offset() :]
            self._launches[kind] = make_launch(own, pages, num_parts, shape.page_tokens)

    def try_fill(self, plan: StepPlan) -> bool:
        """Plan a step into the fixed memory, with one copy; False where it does not fit, and nothing is changed."""
        assert plan.page_tokens == self._shape.page_tokens
        step = StepWork(plan, self._state.sharing)
        works = [step.plan(kind, self._state.machine.budget) for kind in self._kinds]
        num_rows = sum(sequence.num_queries for sequence in plan.sequences)
        fitted = [try_fit(work, room, num_rows) for work, room in zip(works, self._rooms, strict=True)]
        fitting = [work for work in fitted if work is not None]
        if len(fitting) < len(works):
            return False
        arrays = pack(fitting)
        if arrays[-1].size > self._shape.num_pages:
            return False
        self._state.staging.upload(arrays, self._buffer)
        return True

    def attend(
        self,
        spec: LayerSpec,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: LayerCache,
        *,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        write_layer(self._slots, key, value, cache)
        return self.attend_written(spec, query, cache, sinks=sinks)

    @property
    def slots(self) -> torch.Tensor:
        return self._slots

    def attend_written(
        self, spec: LayerSpec, query: torch.Tensor, cache: LayerCache, *, sinks: torch.Tensor | None = None
    ) -> torch.Tensor:
        launch = self._launches[work_key(spec, query.dtype, self._state.machine)]
        output = query.new_empty(query.shape[0], spec.num_heads, spec.value_dim)
        parts = self._memory.of_layer(self._num_parts, spec)
        attend_layer(LayerCall(spec, query, output, cache, sinks), launch, parts, self._state.machine)
        return output


def room_of(shape: StaticShape, kind: WorkKey, budget: Budget) -> Room:
    """Return the room for a kind of layer: twice as many runs as rows, and all that splitting may add."""
    narrow = 2 * shape.num_rows + budget.num_items(kind)
    wide = 0 if shape.is_simple else shape.num_rows + budget.num_items(kind)
    return Room(narrow, wide, narrow if shape.is_simple else 4 * (narrow + wide), shape.num_rows)


def empty_work(room: Room) -> Work:
    """Return work that does nothing."""
    return Work(
        narrow=np.zeros((room.narrow, ITEM_FIELDS), np.int32),
        wide=np.zeros((room.wide, ITEM_FIELDS), np.int32),
        entries=np.zeros((room.entries, ENTRY_FIELDS), np.int32),
        merges=np.full((room.merges, MERGE_FIELDS), NO_ROW, np.int32),
        pages=np.zeros(0, np.int32),
        num_parts=0,
        angles=np.zeros(0, np.int64),
    )


def try_fit(work: Work, room: Room, num_rows: int) -> Work | None:
    """Return the work padded to the room, or None where it is more or turns queries. Rows from `num_rows` on become
    zeros."""
    padded = empty_work(room)
    pairs = list(zip(arrays_of(work), arrays_of(padded), strict=True))
    if len(work.angles) or num_rows > room.merges or any(len(own) > len(into) for own, into in pairs):
        return None
    for own, into in pairs:
        into[: len(own)] = own
    padding = np.arange(num_rows, room.merges)
    padded.merges[len(work.merges) :][: len(padding)] = np.stack([padding, 0 * padding, 0 * padding], axis=1)
    return replace(padded, pages=work.pages, num_parts=work.num_parts)


def pack(works: Sequence[Work]) -> list[Int32]:
    """Return the arrays of each kind of layer, then the page tables of all, joined, as the items name them."""
    arrays: list[Int32] = []
    pages: list[Int32] = []
    bases: dict[int, int] = {}
    for work in works:
        base = bases.get(id(work.pages))
        if base is None:
            base = bases[id(work.pages)] = sum(map(len, pages))
            pages.append(work.pages)
        if base:
            for items in (work.narrow, work.wide):
                items[:, PAGES_COLUMN] += base
        arrays += arrays_of(work)
    return [*arrays, np.concatenate(pages) if pages else np.zeros(0, np.int32)]


def arrays_of(work: Work) -> tuple[Int32, Int32, Int32, Int32]:
    return work.narrow, work.wide, work.entries, work.merges


def make_launch(tensors: Sequence[torch.Tensor], pages: torch.Tensor, num_parts: int, page_tokens: int) -> Launch:
    """Return the arrays of one kind of layer, in the order of `arrays_of`, as its launches take them."""
    narrow, wide, entries, merges = tensors
    return Launch(
        narrow.view(-1, ITEM_FIELDS),
        wide.view(-1, ITEM_FIELDS),
        entries.view(-1, ENTRY_FIELDS),
        merges.view(-1, MERGE_FIELDS),
        pages,
        num_parts,
        page_tokens,
    )

"""The CPU kernels' arguments: of a step, of its layers; as a program of one layer, or as operations of a larger one.

Knows no plans' making, no requests, no models.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kea.attention import numba_kernels as kernels
from kea.attention.base import LayerCache, LayerSpec, Run, StepPlan
from kea.attention.numba_advance import ADVANCE, NUM_ADVANCE, UNIT_FIRST, UNIT_STOP
from kea.attention.numba_advance import POSITIONS as ADVANCE_POSITIONS
from kea.attention.numba_advance import STEP as ADVANCE_STEP
from kea.attention.numba_advance import WINDOW as ADVANCE_WINDOW
from kea.attention.numba_few import ATTEND
from kea.attention.numba_finite import LAYER as LOOK_LAYER
from kea.attention.numba_finite import LOOK, NUM_LOOK
from kea.attention.numba_finite import SPOILT as LOOK_SPOILT
from kea.attention.numba_units import Units
from kea.attention.numba_with_tiles import ATTEND_WITH_TILES
from kea.attention.sharing import NOWHERE, Int64, Segments
from kea.attention.storage import row_width
from kea.kernels.narrow import BYTES, HALF, WHOLE
from kea.kernels.program import TEAM, Kernel, Operation, Program
from kea.kernels.tiles import has_tiles

F32 = NDArray[np.float32]
NAMES = ("rows", "blind", "units", "merged")
"""Of a layer's kernels: new rows are stored, or where others did so only cleared; units attended to; parts merged."""

FORMATS = {torch.float32: WHOLE, torch.float16: HALF, torch.int8: BYTES}
"""The rows of a cache that the kernels read and write."""


def parts() -> tuple[tuple[str, Kernel], ...]:
    """The kernels of a layer on this machine, by their names."""
    attend = ATTEND_WITH_TILES if has_tiles() else ATTEND
    return tuple(zip(NAMES, (kernels.STORE, kernels.CLEAR, attend, kernels.MERGE), strict=True))


class WorkKey(NamedTuple):
    """What layers have in common that share their work's plan."""

    window: int | None
    num_kv: int
    group: int


def work_key(spec: LayerSpec) -> WorkKey:
    return WorkKey(spec.window, spec.num_kv_heads, spec.num_heads // spec.num_kv_heads)


class Work:
    """A step's arguments for layers of one shape and window; holds what their addresses point to.

    Lives for a step, and for the next one where that only goes on by a token (`advance`).
    """

    def __init__(self, plan: StepPlan, segments: Segments, units: Units) -> None:
        self._segments = segments
        self._units = units
        self.num_spare = units.num_spare
        self._slots = plan.slots.numpy().copy()
        self.arguments = a = np.zeros(kernels.NUM_STEP, np.int64)
        a[kernels.SLOTS], a[kernels.NUM_ROWS] = self._slots.ctypes.data, len(plan.slots)
        a[kernels.PAGES], a[kernels.NUM_PAGES] = segments.pages.ctypes.data, len(segments.pages)
        a[kernels.ROWS_SEEN], a[kernels.NUM_ENTRIES] = segments.rows.ctypes.data, len(segments.rows)
        a[kernels.LOWS], a[kernels.HIGHS] = segments.lows.ctypes.data, segments.highs.ctypes.data
        a[kernels.UNITS], a[kernels.NUM_UNITS] = units.units.ctypes.data, len(units.units)
        a[kernels.PAGE_TOKENS], a[kernels.NUM_SPARE] = plan.page_tokens, units.num_spare
        a[kernels.MERGED], a[kernels.NUM_MERGED] = units.merged.ctypes.data, len(units.merged)
        a[kernels.BOUNDS] = units.bounds.ctypes.data
        a[kernels.PLACES], a[kernels.NUM_PLACES] = units.places.ctypes.data, len(units.places)
        a[kernels.HAS_BLIND] = len(units.rows) < len(plan.slots)
        a[kernels.TABLES] = segments.tables.ctypes.data
        num_rows = -(-len(plan.slots) // kernels.STORE_ROWS)
        blind = num_rows if a[kernels.HAS_BLIND] else 0
        self.num_chunks = dict(zip(NAMES, (num_rows, blind, len(units.units), len(units.merged)), strict=True))

    def advance(self, plan: StepPlan, *, is_advanced: bool) -> None:
        """Become the work of a plan that `goes_on` from this one: each row sees one more key, in its own last page.

        `is_advanced`: a program's kernel has moved the bounds.
        """
        self._slots[:] = plan.slots.numpy()
        if is_advanced:
            return
        seen, units = self._segments, self._units.units
        ends = np.array([sequence.position for sequence in plan.sequences], dtype=np.int64)[seen.rows]
        is_last = seen.highs == ends
        first = units[:, UNIT_FIRST]
        units[:, UNIT_STOP] += is_last[first] & (units[:, UNIT_STOP] == ends[first])
        seen.highs[:] += is_last

    @property
    def is_growing(self) -> bool:
        """Whether every row's table can take further pages, while there is room."""
        return bool((self._segments.tables != NOWHERE).all())

    def try_extend(self, row: int, index: int, page: int, position: int) -> bool:
        """Let entry `index` of a row's page table be `page`; False where there is no room for it. `position`: of the
        row's next token.
        """
        if index >= self._segments.rooms[row]:
            return False
        size = int(self.arguments[kernels.PAGE_TOKENS])
        self._segments.pages[self._segments.tables[row] + index] = page
        if position // size == index:
            self._slots[row] = page * size + position % size
        return True


def goes_on(before: StepPlan, plan: StepPlan, num_tokens: int = 1) -> bool:
    """Whether every context of a step is so many tokens further, with the same pages, and sees all that is before."""
    return len(before.sequences) == len(plan.sequences) and all(
        new.position == old.position + num_tokens
        and new.position < len(old.page_table) * plan.page_tokens
        and new.num_queries == old.num_queries == 1
        and new.row_start == old.row_start == row
        and old.runs == (Run(0, old.position + 1),)
        and new.runs == (Run(0, new.position + 1),)
        and (new.page_table is old.page_table or new.page_table == old.page_table)
        for row, (old, new) in enumerate(zip(before.sequences, plan.sequences, strict=True))
    )


class Spare:
    """Memory for partial results; grows, and is used by one layer after the other. An address is good for one run."""

    def __init__(self) -> None:
        self._values = np.empty(0, np.float32)

    def address(self, size: int) -> int:
        if size > self._values.size:
            self._values = np.empty(size, np.float32)
        return int(self._values.ctypes.data)


class Launcher:
    """The program of one layer's attention: its arguments are written anew for each run. Lives with the backend."""

    def __init__(self) -> None:
        self._arguments = np.zeros(kernels.NUM_LAYER, np.int64)
        self._spare = Spare()
        self._program = Program(
            [Operation(kernel, self._arguments, None, name) for name, kernel in parts() if name != "blind"]
        )

    def run(
        self,
        spec: LayerSpec,
        work: Work,
        heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
        memory: tuple[LayerCache, torch.Tensor | None],
        num_threads: int,
    ) -> None:
        """Attend with contiguous queries, keys and values to the last of `heads`; `memory`: the cache, sink logits."""
        cache, sinks = memory
        a = self._arguments
        write_shape(a, spec)
        write_cache(a, spec, cache)
        for field, tensor in zip((kernels.QUERY, kernels.KEY, kernels.VALUE, kernels.OUT), heads, strict=True):
            a[field] = tensor.data_ptr()
        a[kernels.SINKS] = 0 if sinks is None else sinks.data_ptr()
        a[kernels.SPARE] = self._spare.address(_spare_size(spec, work))
        a[kernels.STEP] = work.arguments.ctypes.data
        TEAM.run(self._program, num_threads, **work.num_chunks)


class Worked(Protocol):
    """A prepared plan that has the kernels' arguments."""

    def work_of(self, spec: LayerSpec, num_threads: int) -> Work: ...


class RecordedLayers:
    """The attention of a model's layers as operations of one program. Lives as long as the program.

    `spare`: may be that of other programs, too, which run one after the other.
    """

    def __init__(self, specs: Sequence[LayerSpec], spare: Spare) -> None:
        self._specs = tuple(specs)
        self._arguments = np.zeros((len(self._specs), kernels.NUM_LAYER), np.int64)
        self._spare = spare
        self._holds: list[tuple[NDArray[Any], ...]] = []
        self._cache: tuple[LayerCache, ...] = ()
        self._kinds: dict[WorkKey, list[int]] = {}
        self._works: list[Work] = []
        self._num_chunks: dict[str, int] = {}
        for index, spec in enumerate(self._specs):
            self._kinds.setdefault(work_key(spec), []).append(index)
        self._names = {kind: {name: f"{name} of {kind}" for name in NAMES} for kind in self._kinds}
        self._advancing = np.zeros((len(self._kinds), NUM_ADVANCE), np.int64)

    def address(self, index: int) -> int:
        """Return the address of a layer's arguments, for who stores keys and values himself (`store_head`)."""
        return int(self._arguments[index].ctypes.data)

    def operations(self, index: int, heads: tuple[F32, F32, F32, F32], *, is_stored: bool = False) -> list[Operation]:
        """Return the operations of a layer: queries, keys and values to the last of `heads`, [T, padded H * Dv].

        `is_stored`: keys and values are in the cache before.
        """
        a, spec = self._arguments[index], self._specs[index]
        write_shape(a, spec)
        for field, array in zip((kernels.QUERY, kernels.KEY, kernels.VALUE, kernels.OUT), heads, strict=True):
            a[field] = array.ctypes.data
        a[kernels.OUT_WIDTH] = heads[3].shape[1]
        self._holds.append(heads)
        names = self._names[work_key(spec)]
        left_out = "rows" if is_stored else "blind"
        return [Operation(kernel, a, None, names[name]) for name, kernel in parts() if name != left_out]

    def advance(self, positions: Int64) -> list[Operation]:
        """Return the operations that make a decode step's arguments those of the next one; `positions` [T] of the step
        that has been computed.
        """
        self._advancing[:, ADVANCE_POSITIONS] = positions.ctypes.data
        self._advancing[:, ADVANCE_WINDOW] = [kind.window or 0 for kind in self._kinds]
        self._holds.append((positions,))
        return [Operation(ADVANCE, a, 1) for a in self._advancing]

    def look(self, spoilt: Int64, name: str) -> Operation:
        """Return the operation, of a chunk for each row, that notes in `spoilt` [T] which rows' new keys or values are
        not finite.
        """
        a = np.zeros(NUM_LOOK, np.int64)
        a[LOOK_LAYER], a[LOOK_SPOILT] = self._arguments[-1].ctypes.data, spoilt.ctypes.data
        self._holds.append((a, spoilt))
        return Operation(LOOK, a, None, name)

    def fill(self, plan: Worked, cache: tuple[LayerCache, ...], num_threads: int) -> dict[str, int]:
        """Write the arguments of a step; return the numbers of chunks of the operations, by name."""
        works = [plan.work_of(self._specs[indices[0]], num_threads) for indices in self._kinds.values()]
        if cache is self._cache and len(works) == len(self._works) and all(map(operator.is_, works, self._works)):
            return self._num_chunks
        if cache is not self._cache:
            for index, spec in enumerate(self._specs):
                write_cache(self._arguments[index], spec, cache[index])
            self._cache = cache
        num_chunks: dict[str, int] = {}
        size = 0
        for number, ((kind, indices), work) in enumerate(zip(self._kinds.items(), works, strict=True)):
            self._advancing[number, ADVANCE_STEP] = self._arguments[indices, kernels.STEP] = work.arguments.ctypes.data
            size = max(size, *(_spare_size(self._specs[index], work) for index in indices))
            num_chunks |= {self._names[kind][name]: count for name, count in work.num_chunks.items()}
        self._arguments[:, kernels.SPARE] = self._spare.address(size)
        self._works, self._num_chunks = works, num_chunks
        return num_chunks


def _spare_size(spec: LayerSpec, work: Work) -> int:
    return work.num_spare * spec.num_heads * (spec.value_dim + 2)


def write_shape(a: Int64, spec: LayerSpec) -> None:
    """Write what a layer's arguments say of its shape."""
    a[kernels.OUT_WIDTH] = spec.num_heads * spec.value_dim
    a[kernels.NUM_HEADS], a[kernels.NUM_KV] = spec.num_heads, spec.num_kv_heads
    a[kernels.KEY_DIM], a[kernels.VALUE_DIM] = spec.key_dim, spec.value_dim
    a[kernels.SCALE] = np.float64(spec.scale).view(np.int64)
    a[kernels.SOFTCAP] = np.float64(spec.softcap or 0.0).view(np.int64)


def write_cache(a: Int64, spec: LayerSpec, cache: LayerCache) -> None:
    """Write where a layer's cache is. The kernels do not check their indices: one of another shape must not reach
    them."""
    if cache.keys.dtype not in FORMATS or cache.values.dtype != cache.keys.dtype:
        raise RuntimeError(
            f"The layer's cache is {cache.keys.dtype}; the kernels are for {', '.join(map(str, FORMATS))}."
        )
    found = (tuple(cache.keys.shape[1:]), tuple(cache.values.shape[1:]))
    widths = (row_width(cache.keys.dtype, dim) for dim in (spec.key_dim, spec.value_dim))
    expected = tuple((spec.num_kv_heads, width) for width in widths)
    if found != expected:
        raise RuntimeError(f"The layer's cache holds heads of {found}, the layer's are {expected}.")
    if not (cache.keys.is_contiguous() and cache.values.is_contiguous()):
        raise RuntimeError("The layer's cache is not contiguous.")
    a[kernels.KEYS], a[kernels.VALUES] = cache.keys.data_ptr(), cache.values.data_ptr()
    a[kernels.NUM_SLOTS], a[kernels.FORMAT] = len(cache.keys), FORMATS[cache.keys.dtype]

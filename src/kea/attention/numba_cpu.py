"""The backend `numba`: our own kernels over the pages in place, a page that several contexts share read once for all.

For CPUs and fp32; other arithmetic goes through the backend `torch` as a whole. Knows no requests, no models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kea.attention import numba_kernels as kernels
from kea.attention.base import LayerCache, LayerSpec, StepPlan, check_unpinned
from kea.attention.gather import GatherPlan, Workspace
from kea.attention.jit import running_kernels
from kea.attention.numba_units import Units, plan_units
from kea.attention.sharing import Int64, Segments, SharingCosts, SharingPlanner
from kea.kernels.program import TEAM, Operation, Program


@dataclass(frozen=True, slots=True)
class Work:
    """A step's arguments for layers of one shape and window, and what their addresses point to."""

    arguments: Int64
    segments: Segments
    units: Units

    @property
    def num_chunks(self) -> dict[str, int]:
        a = self.arguments
        rows = -(-int(a[kernels.NUM_ROWS]) // kernels.STORE_ROWS)
        return {"rows": rows, "units": len(self.units.units), "merged": len(self.units.merged)}


class Launcher:
    """The program of one layer's attention: its arguments are written anew for each run. Lives with the backend."""

    def __init__(self) -> None:
        self.arguments = np.zeros(kernels.NUM_LAYER, np.int64)
        self._spare = np.empty(0, np.float32)
        parts = ((kernels.STORE, "rows"), (kernels.ATTEND, "units"), (kernels.MERGE, "merged"))
        self._program = Program([Operation(kernel, self.arguments, None, name) for kernel, name in parts])

    def run(self, spec: LayerSpec, work: Work, num_threads: int) -> None:
        size = work.units.num_spare * spec.num_heads * (spec.value_dim + 2)
        if size > self._spare.size:
            self._spare = np.empty(size, np.float32)
        self.arguments[kernels.SPARE] = self._spare.ctypes.data
        self.arguments[kernels.STEP] = work.arguments.ctypes.data
        TEAM.run(self._program, num_threads, **work.num_chunks)


class NumbaPlan:
    """One step: its tree of shared pages and, by the shape of a layer, the work of it."""

    def __init__(self, plan: StepPlan, planner: SharingPlanner, launcher: Launcher, workspace: Workspace) -> None:
        self._plan = plan
        self._tree = planner.tree(plan.sequences, plan.page_tokens)
        self._launcher = launcher
        self._gathering = GatherPlan(plan, workspace)
        self._work: dict[tuple[int | None, int, int], Work] = {}

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
        if {query.dtype, cache.keys.dtype} != {torch.float32}:
            return self._gathering.attend(spec, query, key, value, cache, sinks=sinks)
        check_cache(spec, cache)
        with running_kernels() as num_threads:
            work = self._work_of(spec, num_threads)
            sees_all = len(work.units.rows) == len(query)
            make = query.new_empty if sees_all else query.new_zeros
            output = make((len(query), spec.num_heads, spec.value_dim))
            parts = (query.contiguous(), key.contiguous(), value.contiguous(), output)
            logits = None if sinks is None else sinks.float().contiguous()
            write_layer(self._launcher.arguments, spec, parts, cache, logits)
            self._launcher.run(spec, work, num_threads)
        return output

    def _work_of(self, spec: LayerSpec, num_threads: int) -> Work:
        group = spec.num_heads // spec.num_kv_heads
        key = (spec.window, spec.num_kv_heads, group)
        if key not in self._work:
            segments = self._tree.segments(spec.window, sharing_costs(group))
            units = plan_units(segments, spec.num_kv_heads, group, num_threads)
            self._work[key] = Work(step_arguments(self._plan, segments, units), segments, units)
        return self._work[key]


def sharing_costs(group: int) -> SharingCosts:
    return SharingCosts(segment=20.0, row=2.0, product=0.03 * group)


def write_layer(
    a: Int64,
    spec: LayerSpec,
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    cache: LayerCache,
    sinks: torch.Tensor | None,
) -> None:
    """Write a layer's arguments; the tensors are to live as long as these are in use."""
    query, key, value, output = parts
    fields: dict[int, Any] = {
        kernels.QUERY: query.data_ptr(),
        kernels.KEY: key.data_ptr(),
        kernels.VALUE: value.data_ptr(),
        kernels.OUT: output.data_ptr(),
        kernels.OUT_WIDTH: spec.num_heads * spec.value_dim,
        kernels.KEYS: cache.keys.data_ptr(),
        kernels.VALUES: cache.values.data_ptr(),
        kernels.NUM_SLOTS: len(cache.keys),
        kernels.NUM_HEADS: spec.num_heads,
        kernels.NUM_KV: spec.num_kv_heads,
        kernels.KEY_DIM: spec.key_dim,
        kernels.VALUE_DIM: spec.value_dim,
        kernels.SCALE: np.float64(spec.scale).view(np.int64),
        kernels.SOFTCAP: np.float64(spec.softcap or 0.0).view(np.int64),
        kernels.SINKS: 0 if sinks is None else sinks.data_ptr(),
    }
    for index, found in fields.items():
        a[index] = found


def step_arguments(plan: StepPlan, segments: Segments, units: Units) -> Int64:
    a = np.zeros(kernels.NUM_STEP, np.int64)
    a[kernels.SLOTS], a[kernels.NUM_ROWS] = plan.slots.data_ptr(), len(plan.slots)
    a[kernels.PAGES], a[kernels.NUM_PAGES] = segments.pages.ctypes.data, len(segments.pages)
    a[kernels.ROWS_SEEN], a[kernels.NUM_ENTRIES] = segments.rows.ctypes.data, len(segments.rows)
    a[kernels.LOWS], a[kernels.HIGHS] = segments.lows.ctypes.data, segments.highs.ctypes.data
    a[kernels.UNITS], a[kernels.NUM_UNITS] = units.units.ctypes.data, len(units.units)
    a[kernels.PAGE_TOKENS], a[kernels.NUM_SPARE] = plan.page_tokens, units.num_spare
    a[kernels.MERGED], a[kernels.NUM_MERGED] = units.merged.ctypes.data, len(units.merged)
    a[kernels.BOUNDS] = units.bounds.ctypes.data
    a[kernels.PLACES], a[kernels.NUM_PLACES] = units.places.ctypes.data, len(units.places)
    return a


def check_cache(spec: LayerSpec, cache: LayerCache) -> None:
    """The kernels do not check their indices: a cache of another shape or layout must not reach them."""
    found = (tuple(cache.keys.shape[1:]), tuple(cache.values.shape[1:]))
    expected = ((spec.num_kv_heads, spec.key_dim), (spec.num_kv_heads, spec.value_dim))
    if found != expected:
        raise RuntimeError(f"The layer's cache holds heads of {found}, the layer's are {expected}.")
    if not (cache.keys.is_contiguous() and cache.values.is_contiguous()):
        raise RuntimeError("The layer's cache is not contiguous.")


class NumbaAttention:
    """The backend `numba`. Where a stretch of keys is cut depends on the batch, so a row's last bits do too."""

    name = "numba"
    batch_invariant = False

    def __init__(self) -> None:
        self._planner = SharingPlanner()
        self._workspace = Workspace()
        self._launcher = Launcher()

    def prepare(self, plan: StepPlan) -> NumbaPlan:
        check_unpinned(plan, self.name)
        return NumbaPlan(plan, self._planner, self._launcher, self._workspace)

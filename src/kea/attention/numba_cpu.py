"""The backend `numba`: decode rows by our own kernels over the pages in place, chunks by torch's products.

For CPUs and fp32; other arithmetic goes through the backend `torch` as a whole. Long contexts are cut into stretches,
so that one row keeps all threads busy; a stretch's bounds do not depend on the batch. Knows no requests, no models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from kea.attention.base import LayerCache, LayerSpec, SequencePlan, StepPlan
from kea.attention.gather import GatherPlan, Workspace
from kea.attention.jit import running_kernels, spread
from kea.attention.numba_kernels import I64, attend_items, write

MAX_SINGLE_QUERIES = 4
MAX_STRETCH_TOKENS = 512
NO_SINKS = np.empty(0, np.float32)

Work = tuple[I64, I64, I64, I64]


class NumbaPlan:
    """One step: which rows our kernels attend for, and the torch plan of the others."""

    def __init__(self, plan: StepPlan, workspaces: list[Workspace]) -> None:
        self._plan = plan
        self._singles = tuple(seq for seq in plan.sequences if seq.num_queries <= MAX_SINGLE_QUERIES)
        chunks = tuple(seq for seq in plan.sequences if seq.num_queries > MAX_SINGLE_QUERIES)
        self._all = GatherPlan(plan, workspaces[0])
        self._chunks = StepPlan(chunks, plan.slots, plan.page_tokens) if chunks else None
        self._workspaces = workspaces
        self._parts: list[GatherPlan] = []
        self._slots: I64 = plan.slots.numpy()
        self._work: dict[int | None, Work] = {}

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
            return self._all.attend(spec, query, key, value, cache, sinks=sinks)
        check_cache(spec, cache)
        output = query.new_empty(query.shape[0], spec.num_heads, spec.value_dim)
        with running_kernels() as num_threads:
            if self._chunks is not None:
                num_parts = min(num_threads, spec.num_kv_heads)
                plans = self._plans_of(self._chunks, num_parts)
                rows = (query, key, value, output)
                spread(num_parts, lambda part: _attend_part(plans[part], spec, (part, num_parts), rows, (cache, sinks)))
            self._attend_singles(spec, (query, key, value), cache, sinks, output)
        return output

    def _plans_of(self, chunks: StepPlan, num_parts: int) -> list[GatherPlan]:
        """Return a plan of the chunks for each part: its buffers and masks are its own."""
        while len(self._workspaces) < num_parts:
            self._workspaces.append(Workspace())
        self._parts += [GatherPlan(chunks, workspace) for workspace in self._workspaces[len(self._parts) : num_parts]]
        return self._parts

    def _attend_singles(
        self,
        spec: LayerSpec,
        rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        cache: LayerCache,
        sinks: torch.Tensor | None,
        output: torch.Tensor,
    ) -> None:
        query, key, value = (part.contiguous().numpy() for part in rows)
        caches = (cache.keys.numpy(), cache.values.numpy())
        factors = (spec.scale, spec.softcap or 0.0, self._plan.page_tokens)
        if self._chunks is None:
            write(self._slots, key, value, caches)
        if self._singles:
            logits = NO_SINKS if sinks is None else sinks.float().contiguous().numpy()
            attend_items((query, output.numpy()), caches, self._work_of(spec.window), factors, logits)

    def _work_of(self, window: int | None) -> Work:
        if window not in self._work:
            self._work[window] = plan_work(self._singles, window)
        return self._work[window]


def _attend_part(
    plan: GatherPlan,
    spec: LayerSpec,
    part: tuple[int, int],
    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    memory: tuple[LayerCache, torch.Tensor | None],
) -> None:
    """Attend with one part of the KV heads, and the queries' heads that they serve, as if they were the layer."""
    query, key, value, output = rows
    cache, sinks = memory
    lo, hi = ((part[0] + i) * spec.num_kv_heads // part[1] for i in (0, 1))
    group = spec.num_heads // spec.num_kv_heads
    heads = slice(lo * group, hi * group)
    output[:, heads] = plan.attend(
        replace(spec, num_heads=(hi - lo) * group, num_kv_heads=hi - lo),
        query[:, heads].contiguous(),
        key[:, lo:hi],
        value[:, lo:hi],
        LayerCache(cache.keys[:, lo:hi], cache.values[:, lo:hi]),
        sinks=None if sinks is None else sinks[heads],
    )


def check_cache(spec: LayerSpec, cache: LayerCache) -> None:
    """The kernels do not check their indices: a cache of another shape must not reach them."""
    found = (tuple(cache.keys.shape[1:]), tuple(cache.values.shape[1:]))
    expected = ((spec.num_kv_heads, spec.key_dim), (spec.num_kv_heads, spec.value_dim))
    if found != expected:
        raise RuntimeError(f"The layer's cache holds heads of {found}, the layer's are {expected}.")


def plan_work(sequences: tuple[SequencePlan, ...], window: int | None) -> Work:
    """Cut the visible positions of every query into items; see `attend_items` for the arrays."""
    items: list[tuple[int, int, int, int]] = []
    tables: list[int] = []
    rows, bounds = [], [0]
    for sequence in sequences:
        for i in range(sequence.num_queries):
            spans = _visible(sequence, sequence.position + i, window)
            items += [(sequence.row_start + i, len(tables), lo, hi) for lo, hi in spans]
            rows.append(sequence.row_start + i)
            bounds.append(len(items))
        tables += sequence.page_table
    return (
        np.array(items, dtype=np.int64).reshape(-1, 4),
        np.array(tables, dtype=np.int64),
        np.array(rows, dtype=np.int64),
        np.array(bounds, dtype=np.int64),
    )


def _visible(sequence: SequencePlan, position: int, window: int | None) -> Iterator[tuple[int, int]]:
    """Yield the stretches [lo, hi) that the query at `position` sees, cut at multiples of the longest one."""
    for run in sequence.runs:
        lo = run.start if run.left is None else max(run.start, position - run.left)
        lo = lo if window is None else max(lo, position - window + 1)
        stop = min(run.stop, position + 1)
        while lo < stop:
            hi = min(stop, (lo // MAX_STRETCH_TOKENS + 1) * MAX_STRETCH_TOKENS)
            yield lo, hi
            lo = hi


class NumbaAttention:
    """The backend `numba`. Chunks are torch's, whose last bits depend on the batch."""

    name = "numba"
    batch_invariant = False

    def __init__(self) -> None:
        self._workspaces = [Workspace()]

    def prepare(self, plan: StepPlan) -> NumbaPlan:
        return NumbaPlan(plan, self._workspaces)

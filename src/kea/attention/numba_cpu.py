"""The backend `numba`: our own kernels over the pages in place, a page that several contexts share read once for all.

For CPUs and fp32, with keys and values in fp32 or rounded; other arithmetic goes through the backend `torch` as a
whole. Knows no requests, no models.
"""

from __future__ import annotations

import torch

from kea.attention.base import LayerCache, LayerSpec, StepPlan, check_unpinned
from kea.attention.gather import GatherPlan, Workspace
from kea.attention.numba_program import FORMATS, Launcher, Work, WorkKey, goes_on, work_key
from kea.attention.numba_units import plan_units
from kea.attention.sharing import SharingCosts, SharingPlanner, SharingTree
from kea.attention.threads import running_kernels

GROWTH_TOKENS = 64
"""How much longer a context may become before its work is cut anew: until then its last unit grows, as one."""


def sharing_costs(group: int) -> SharingCosts:
    """What a segment costs these kernels: measured where sharing begins to pay, about 85 tokens for 16 and 32 rows."""
    return SharingCosts(segment=20.0, row=75.0, product=0.03 * group)


class NumbaPlan:
    """One step: its tree of shared pages and, by the shape of a layer, the work of it.

    Work that was planned for the step before serves this one too, where all contexts only went on. `num_advanced`: by
    how many tokens a program's kernel has moved the work's bounds on since it was planned; 0 where there is none.
    """

    def __init__(
        self,
        plan: StepPlan,
        before: NumbaPlan | None,
        planner: SharingPlanner,
        launcher: Launcher,
        workspace: Workspace,
    ) -> None:
        self._plan = plan
        self._planner = planner
        self._tree: SharingTree | None = None
        self._launcher = launcher
        self._workspace = workspace
        self._gathering: GatherPlan | None = None
        self._work: dict[WorkKey, Work] = {}
        self.num_advanced = 0
        if before is not None and goes_on(before._plan, plan, before.num_advanced or 1):
            is_advanced = before.num_advanced > 0
            self._work = {kind: work for kind, work in before._work.items() if is_advanced or kind.window is None}
            for work in self._work.values():
                work.advance(plan, is_advanced=is_advanced)

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
        if query.dtype != torch.float32 or cache.keys.dtype not in FORMATS:
            self._gathering = self._gathering or GatherPlan(self._plan, self._workspace)
            return self._gathering.attend(spec, query, key, value, cache, sinks=sinks)
        with running_kernels() as num_threads:
            work = self.work_of(spec, num_threads)
            output = query.new_empty(len(query), spec.num_heads, spec.value_dim)
            heads = (query.contiguous(), key.contiguous(), value.contiguous(), output)
            logits = None if sinks is None else sinks.float().contiguous()
            self._launcher.run(spec, work, heads, (cache, logits), num_threads)
        return output

    @property
    def is_growing(self) -> bool:
        """Whether the context of every row can have more pages."""
        return all(work.is_growing for work in self._work.values())

    def try_extend(self, row: int, index: int, page: int, position: int) -> bool:
        """Do as `Work.try_extend` does in the work of all layers."""
        found = [work.try_extend(row, index, page, position) for work in self._work.values()]
        return all(found)

    def work_of(self, spec: LayerSpec, num_threads: int) -> Work:
        """Return the work of layers like this one, computed when the first of them asks."""
        key = work_key(spec)
        if key not in self._work:
            self._tree = self._tree or self._planner.tree(self._plan.sequences, self._plan.page_tokens)
            spare = -(-GROWTH_TOKENS // self._plan.page_tokens)
            segments = self._tree.segments(spec.window, sharing_costs(key.group), num_spare=spare)
            self._work[key] = Work(self._plan, segments, plan_units(segments, key.num_kv, key.group, num_threads))
        return self._work[key]


class NumbaAttention:
    """The backend `numba`. Where a stretch of keys is cut depends on the batch, so a row's last bits do too."""

    name = "numba"
    batch_invariant = False

    def __init__(self) -> None:
        self._planner = SharingPlanner()
        self._workspace = Workspace()
        self._launcher = Launcher()
        self._last: NumbaPlan | None = None

    def prepare(self, plan: StepPlan) -> NumbaPlan:
        check_unpinned(plan, self.name)
        self._last = NumbaPlan(plan, self._last, self._planner, self._launcher, self._workspace)
        return self._last

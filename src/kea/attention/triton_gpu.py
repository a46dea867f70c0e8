"""The backend `triton`: paged attention over runs by our own kernels on a GPU, or in Triton's interpreter for tests.

A step is planned on the host once for all layers of a kind and copied in one transfer; `attend` only launches. Owns the
memory of partial results. Knows no requests, no models.
"""

from __future__ import annotations

import torch

from kea.attention.base import LayerCache, LayerSpec, SequencePlan, StepPlan
from kea.attention.sharing import SharingCosts, SharingPlanner
from kea.attention.staging import Staging
from kea.attention.triton_launch import Launch, LayerCall, Parts, attend_layer, write_layer
from kea.attention.triton_tiles import read_machine, work_key
from kea.attention.triton_work import (
    ENTRY_FIELDS,
    ITEM_FIELDS,
    MERGE_FIELDS,
    Budget,
    Int32,
    Stretches,
    Work,
    WorkKey,
    from_segments,
    from_sequences,
    plan_work,
)

# Reckoned, not measured: a program's start takes as long as reading some 64 tokens, a part is written and read again,
# and the rows of a block cost next to nothing while memory is the bound.
SHARING_COSTS = SharingCosts(segment=64.0, row=4.0, product=0.005)


class DeviceState:
    """What the backend keeps for one device, as long as it lives: its facts, its buffers, the kinds of layers seen."""

    def __init__(self, device: torch.device) -> None:
        self.machine = read_machine(device)
        self.staging = Staging(device)
        self.sharing = SharingPlanner()
        self.kinds: tuple[WorkKey, ...] = ()
        self._device = device
        self._flat = torch.empty(0, device=device)

    def note(self, kind: WorkKey) -> None:
        """Have the work of layers of this kind planned from the beginning of a step on."""
        if kind not in self.kinds:
            self.kinds = (*self.kinds, kind)

    def parts(self, num_parts: int, spec: LayerSpec) -> Parts:
        """Return room for a layer's partial results, which is any other layer's too. Who holds it keeps it alive."""
        num_lse = num_parts * spec.num_heads
        size = num_lse * (spec.value_dim + 1)
        if self._flat.numel() < size:
            self._flat = torch.empty(size, device=self._device)
        return Parts(self._flat[num_lse:size], self._flat[:num_lse])


class StepWork:
    """Plans one step for one kind of layer after the other; what does not depend on the kind is found once."""

    def __init__(self, plan: StepPlan, sharing: SharingPlanner) -> None:
        self._plan = plan
        self._num_rows = plan.slots.shape[0]
        self._tree = sharing.tree(plan.sequences, plan.page_tokens) if has_sharing(plan.sequences) else None
        self._stretches: dict[int | None, Stretches] = {}

    def plan(self, key: WorkKey, budget: Budget) -> Work:
        stretches = self._stretches.get(key.window)
        if stretches is None:
            stretches = self._stretches[key.window] = self._make_stretches(key.window)
        return plan_work(stretches, self._num_rows, key, budget)

    def _make_stretches(self, window: int | None) -> Stretches:
        if self._tree is None:
            return from_sequences(self._plan.sequences, window)
        return from_segments(self._tree.segments(window, SHARING_COSTS), self._plan.page_tokens)


def has_sharing(sequences: tuple[SequencePlan, ...]) -> bool:
    """Say whether two contexts begin with the same page; where none do, there is nothing to find."""
    firsts = [sequence.page_table[0] for sequence in sequences if sequence.page_table]
    return len(set(firsts)) < len(firsts)


class TritonPlan:
    """One step. Layers of a kind that was not seen before are planned, and copied, when the first of them asks."""

    def __init__(self, plan: StepPlan, state: DeviceState) -> None:
        self._state = state
        self._work = StepWork(plan, state.sharing)
        self._launches: dict[WorkKey, Launch] = {}
        self._plan = plan
        self._upload(state.kinds)

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
        kind = work_key(spec, query.dtype, self._state.machine)
        if kind not in self._launches:
            self._state.note(kind)
            self._upload((kind,))
        launch = self._launches[kind]
        output = query.new_empty(query.shape[0], spec.num_heads, spec.value_dim)
        write_layer(self._plan.slots, key, value, cache)
        parts = self._state.parts(launch.num_parts, spec)
        attend_layer(LayerCall(spec, query, output, cache, sinks), launch, parts, self._state.machine)
        return output

    def _upload(self, kinds: tuple[WorkKey, ...]) -> None:
        """Plan the work of these kinds and copy it in one transfer."""
        works = [self._work.plan(kind, self._state.machine.budget) for kind in kinds]
        tensors = self._state.staging.upload([array for work in works for array in arrays_of(work)])
        for i, (kind, work) in enumerate(zip(kinds, works, strict=True)):
            self._launches[kind] = make_launch(tensors[5 * i : 5 * i + 5], work.num_parts, self._plan.page_tokens)


def arrays_of(work: Work) -> tuple[Int32, ...]:
    return work.narrow, work.wide, work.entries, work.merges, work.pages


def make_launch(tensors: tuple[torch.Tensor, ...], num_parts: int, page_tokens: int) -> Launch:
    narrow, wide, entries, merges, pages = tensors
    return Launch(
        narrow.view(-1, ITEM_FIELDS),
        wide.view(-1, ITEM_FIELDS),
        entries.view(-1, ENTRY_FIELDS),
        merges.view(-1, MERGE_FIELDS),
        pages,
        num_parts,
        page_tokens,
    )


class TritonAttention:
    """The backend `triton`. How a span is split depends on the batch, and so do a row's last bits."""

    name = "triton"
    batch_invariant = False

    def __init__(self) -> None:
        self._states: dict[torch.device, DeviceState] = {}

    def prepare(self, plan: StepPlan) -> TritonPlan:
        return TritonPlan(plan, self.state_of(plan.slots.device))

    def state_of(self, device: torch.device) -> DeviceState:
        """Return what is kept for the device; made when it is first used."""
        state = self._states.get(device)
        if state is None:
            state = self._states[device] = DeviceState(device)
        return state

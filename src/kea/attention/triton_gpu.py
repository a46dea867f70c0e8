"""The backend `triton`: paged attention over runs by our own kernels on a GPU, or in Triton's interpreter for tests.

A step is planned on the host once for all layers of a kind and copied in one transfer; `attend` only launches. Owns the
memory of partial results. Knows no requests, no models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kea.attention.base import LayerCache, LayerSpec, Rotary, StaticShape, StepPlan, require_rotary
from kea.attention.triton_launch import Launch, LayerCall, attend_layer, write_layer
from kea.attention.triton_state import DeviceState
from kea.attention.triton_static import NUM_ARRAYS, TritonStaticPlan, make_launch, pack
from kea.attention.triton_step import StepWork, is_simple
from kea.attention.triton_tiles import work_key
from kea.attention.triton_work import Int64, WorkKey, make_turns


class TritonPlan:
    """One step. Layers of a kind that was not seen before are planned, and copied, when the first of them asks."""

    def __init__(self, plan: StepPlan, state: DeviceState) -> None:
        self._state = state
        self._work = StepWork(plan, state.sharing)
        self._launches: dict[WorkKey, Launch] = {}
        self._angles: dict[WorkKey, Int64] = {}
        self._turns: dict[tuple[int | None, Rotary], torch.Tensor] = {}
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
        write_layer(self._plan.slots, key, value, cache)
        return self.attend_written(spec, query, cache, sinks=sinks)

    @property
    def slots(self) -> torch.Tensor:
        return self._plan.slots

    def attend_written(
        self, spec: LayerSpec, query: torch.Tensor, cache: LayerCache, *, sinks: torch.Tensor | None = None
    ) -> torch.Tensor:
        kind = work_key(spec, query.dtype, self._state.machine)
        if kind not in self._launches:
            self._state.note(kind)
            self._upload((kind,))
        launch = self._launches[kind]
        output = query.new_empty(query.shape[0], spec.num_heads, spec.value_dim)
        parts = self._state.parts(launch.num_parts, spec).of_layer(launch.num_parts, spec)
        call = LayerCall(spec, query, output, cache, sinks, self._turns_of(spec, kind))
        attend_layer(call, launch, parts, self._state.machine)
        return output

    def _turns_of(self, spec: LayerSpec, kind: WorkKey) -> torch.Tensor | None:
        """Return the turns of the layer's queries [A, D] fp32, sent when the first layer of its rotary asks."""
        angles = self._angles[kind]
        if not len(angles):
            return None
        rotary = require_rotary(spec)
        turns = self._turns.get((kind.window, rotary))
        if turns is None:
            (sent,) = self._state.staging.upload([make_turns(angles, rotary).view(np.int32)])
            turns = self._turns[kind.window, rotary] = sent.view(torch.float32).view(len(angles), -1)
        return turns

    def _upload(self, kinds: tuple[WorkKey, ...]) -> None:
        """Plan the work of these kinds and copy it in one transfer."""
        works = [self._work.plan(kind, self._state.machine.budget) for kind in kinds]
        tensors = self._state.staging.upload(pack(works))
        for i, (kind, work) in enumerate(zip(kinds, works, strict=True)):
            own = tensors[NUM_ARRAYS * i : NUM_ARRAYS * (i + 1)]
            self._launches[kind] = make_launch(own, tensors[-1], work.num_parts, self._plan.page_tokens)
            self._angles[kind] = work.angles


class TritonAttention:
    """The backend `triton`. How a span is split depends on the batch, and so do a row's last bits."""

    name = "triton"
    batch_invariant = False

    def __init__(self) -> None:
        self._states: dict[torch.device, DeviceState] = {}

    def prepare(self, plan: StepPlan) -> TritonPlan:
        return TritonPlan(plan, self.state_of(plan.slots.device))

    def is_simple(self, plan: StepPlan) -> bool:
        """Say whether the step has small blocks only, as `StaticShape.is_simple` promises."""
        return is_simple(plan.sequences)

    def create_static(
        self, shape: StaticShape, specs: Sequence[LayerSpec], dtype: torch.dtype, slots: torch.Tensor
    ) -> TritonStaticPlan:
        """Return a plan in fixed memory that a CUDA graph of these layers can be captured with."""
        state = self.state_of(slots.device)
        return TritonStaticPlan(shape, tuple(specs), dtype, slots, state)

    def state_of(self, device: torch.device) -> DeviceState:
        """Return what is kept for the device; made when it is first used."""
        state = self._states.get(device)
        if state is None:
            state = self._states[device] = DeviceState(device)
        return state

"""The oracle: attention written as its definition, one query and one run at a time, merged by log-sum-exp.

Owns no memory and no tricks; slow on purpose. Every other backend is held to it. Knows no requests, no models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from kea.attention.base import LayerCache, LayerSpec, Rotary, Run, SequencePlan, StepPlan, require_rotary
from kea.attention.storage import pack, unpack


@dataclass(frozen=True, slots=True)
class Partial:
    """Attention over some of the keys: the output [H, Dv] normalised over them, the log of their softmax sum [H]."""

    output: torch.Tensor
    lse: torch.Tensor


def merge(partials: list[Partial]) -> Partial:
    """Return the attention over the union of disjoint sets of keys."""
    lse = torch.stack([part.lse for part in partials])  # [N, H]
    total = torch.logsumexp(lse, dim=0)
    weights = torch.exp(lse - total)
    output = sum(weight[:, None] * part.output for weight, part in zip(weights, partials, strict=True))
    return Partial(torch.as_tensor(output), total)


def visible_positions(run: Run, position: int, window: int | None) -> range:
    """Return the positions of `run` that the query at `position` sees in a layer of this `window`."""
    position = seen_from(run, position)
    start = run.start
    if run.left is not None:
        start = max(start, position - run.left)
    if window is not None:
        start = max(start, position - window + 1)
    return range(start, max(start, min(run.stop, position + 1)))


def seen_from(run: Run, position: int) -> int:
    """Return where the query at `position` stands for this run."""
    return position if run.pinned is None else min(position, run.pinned)


def rotate(rotary: Rotary, query: torch.Tensor, angle: int) -> torch.Tensor:
    """Rotate a query [H, Dk] by `angle` positions, with phases formed in fp64."""
    num_dims = 2 * len(rotary.frequencies)
    phases = torch.tensor([math.remainder(angle * frequency, math.tau) for frequency in rotary.frequencies])
    cosine, sine = phases.cos().to(query), phases.sin().to(query)
    turned = query[:, rotary.first : rotary.first + num_dims]
    first, second = (turned[:, ::2], turned[:, 1::2]) if rotary.pairs else turned.chunk(2, dim=1)
    parts = (first * cosine - second * sine, second * cosine + first * sine)
    result = query.clone()
    result[:, rotary.first : rotary.first + num_dims] = (
        torch.stack(parts, dim=-1).flatten(1) if rotary.pairs else torch.cat(parts, dim=1)
    )
    return result


def attend_keys(spec: LayerSpec, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> Partial:
    """Attend from one query [H, Dk] over keys [N, KV, Dk] and values [N, KV, Dv], all of them visible, N >= 1."""
    group = spec.num_heads // spec.num_kv_heads
    keys = keys.repeat_interleave(group, dim=1)
    values = values.repeat_interleave(group, dim=1)
    logits = torch.einsum("hd,nhd->hn", query, keys) * spec.scale
    if spec.softcap is not None:
        logits = spec.softcap * torch.tanh(logits / spec.softcap)
    lse = torch.logsumexp(logits, dim=1)
    return Partial(torch.einsum("hn,nhd->hd", torch.exp(logits - lse[:, None]), values), lse)


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """A plan as the reference runs it: nothing is computed ahead."""

    plan: StepPlan

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
        cache.keys[self.plan.slots] = pack(key, cache.keys.dtype)
        cache.values[self.plan.slots] = pack(value, cache.values.dtype)
        output = query.new_zeros(query.shape[0], spec.num_heads, spec.value_dim)
        for sequence in self.plan.sequences:
            for i in range(sequence.num_queries):
                row = sequence.row_start + i
                output[row] = self._attend_row(spec, query[row], cache, sequence, sinks, position=sequence.position + i)
        return output

    def _attend_row(
        self,
        spec: LayerSpec,
        query: torch.Tensor,
        cache: LayerCache,
        sequence: SequencePlan,
        sinks: torch.Tensor | None,
        *,
        position: int,
    ) -> torch.Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        partials: list[Partial] = []
        for run in sequence.runs:
            slots = self._slots(sequence, visible_positions(run, position, spec.window))
            if slots.numel():
                angle = seen_from(run, position) - position
                turned = rotate(require_rotary(spec), query.to(wide), angle) if angle else query.to(wide)
                keys, values = (unpack(part[slots]).to(wide) for part in (cache.keys, cache.values))
                partials.append(attend_keys(spec, turned, keys, values))
        if not partials:
            return query.new_zeros(spec.num_heads, spec.value_dim)
        if sinks is not None:
            zeros = torch.zeros_like(partials[0].output)
            partials.append(Partial(zeros, sinks.to(wide)))
        return merge(partials).output.to(query.dtype)

    def _slots(self, sequence: SequencePlan, positions: range) -> torch.Tensor:
        size = self.plan.page_tokens
        slots = [sequence.page_table[j // size] * size + j % size for j in positions]
        return torch.tensor(slots, dtype=torch.int64, device=self.plan.slots.device)


class ReferenceAttention:
    """The backend `reference`. Every row is computed alone, so its result does not depend on the batch."""

    name = "reference"
    batch_invariant = True

    def prepare(self, plan: StepPlan) -> ReferencePlan:
        return ReferencePlan(plan)

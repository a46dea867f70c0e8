"""Steps in which contexts only go on by a token reuse the work of the step before, and equal steps planned afresh."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from kea.attention.base import LayerCache, LayerSpec, Run, SequencePlan, StepPlan
from kea.attention.numba_cpu import NumbaAttention
from kea.attention.numba_program import goes_on
from kea.attention.reference import ReferenceAttention
from kea.attention.storage import pack

PAGE = 4
SPEC = LayerSpec(num_heads=6, num_kv_heads=2, key_dim=8, value_dim=16, scale=0.3)
SHARED = tuple(range(100, 140))


def plan_at(lengths: list[int], *, prefix: int = 0, left: int | None = None) -> StepPlan:
    """Return a decode step of contexts of these lengths, the first `prefix` pages of which are the same."""
    sequences, slots = [], []
    for row, length in enumerate(lengths):
        own = tuple(range(200 + 50 * row, 200 + 50 * row + (length - 1) // PAGE + 1))
        table = (*SHARED[:prefix], *own[prefix:])
        sequences.append(SequencePlan(row, 1, length - 1, table, (Run(0, length, left),)))
        slots.append(table[(length - 1) // PAGE] * PAGE + (length - 1) % PAGE)
    return StepPlan(tuple(sequences), torch.tensor(slots), PAGE)


def longer(plan: StepPlan) -> StepPlan:
    """Return the plan with tables that already have the pages of later tokens."""
    return replace(plan, sequences=tuple(s._replace(page_table=tuple(range(200, 220))) for s in plan.sequences))


def attend_all(
    plans: list[StepPlan], spec: LayerSpec, dtype: torch.dtype = torch.float32
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Run steps one after the other on the kernels and on the reference; their caches start with the same values."""
    generator = torch.Generator().manual_seed(0)
    shape = (600 * PAGE, spec.num_kv_heads)
    keys = torch.randn(*shape, spec.key_dim, generator=generator)
    values = torch.randn(*shape, spec.value_dim, generator=generator)
    kv = spec.num_kv_heads
    widths = ((spec.num_heads, spec.key_dim), (kv, spec.key_dim), (kv, spec.value_dim))
    inputs = [[torch.randn(len(p.sequences), *width, generator=generator) for width in widths] for p in plans]
    found = []
    for backend in (NumbaAttention(), ReferenceAttention()):
        cache = LayerCache(pack(keys, dtype).clone(), pack(values, dtype).clone())
        outputs = []
        for plan, (query, key, value) in zip(plans, inputs, strict=True):
            outputs.append(backend.prepare(plan).attend(spec, query, key, value, cache))
        found.append(outputs)
    return found[0], found[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
@pytest.mark.parametrize("prefix", [0, 20])
@pytest.mark.parametrize("window", [None, 7])
def test_steps_that_go_on_equal_the_reference(prefix: int, window: int | None, dtype: torch.dtype) -> None:
    lengths = [81, 90, 150, 83]
    plans = [plan_at([length + step for length in lengths], prefix=prefix) for step in range(14)]
    plans += [plan_at([length + 14 + step for length in lengths[:2]], prefix=prefix) for step in range(6)]
    assert sum(goes_on(a, b) for a, b in pairwise(plans)) > 3
    ours, theirs = attend_all(plans, replace(SPEC, window=window), dtype)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 1e-5


@pytest.mark.parametrize("window", [None, 7])
def test_a_table_may_have_the_pages_of_later_tokens(window: int | None) -> None:
    plans = [longer(plan_at([length])) for length in range(6, 30)]
    assert all(goes_on(a, b) for a, b in pairwise(plans))
    ours, theirs = attend_all(plans, replace(SPEC, window=window))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 1e-5


def test_what_is_more_than_a_next_token_is_planned_afresh() -> None:
    before = plan_at([9, 10])
    assert goes_on(before, plan_at([10, 11]))
    assert goes_on(longer(plan_at([8])), longer(plan_at([9]))), "the table had the page before"
    assert goes_on(before, plan_at([11, 12]), 2)
    others = {
        "a new page": (plan_at([8, 10]), plan_at([9, 11])),
        "a token skipped": (before, plan_at([11, 12])),
        "one context less": (before, plan_at([10])),
        "another page": (before, plan_at([10, 11], prefix=1)),
        "a left mask": (plan_at([9, 10], left=3), plan_at([10, 11], left=3)),
        "the same step again": (before, before),
    }
    assert {name: goes_on(*pair) for name, pair in others.items()} == dict.fromkeys(others, False)

"""The backend `triton`: its planning, shapes that the random steps lack, and what a GPU's compiler says of it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kea.attention import StaticPlan, StaticShape, create_backend
from kea.attention.base import LayerCache, LayerSpec, Run, SequencePlan, StepPlan
from kea.attention.sharing import SharingCosts, SharingPlanner
from kea.attention.triton_step import StepWork
from kea.attention.triton_work import NO_PART, Budget, Work, WorkKey, from_sequences, plan_work
from kea.errors import InvalidRequest
from tests.attention.plans import Case, dense_mask, dense_oracle, random_case, random_spec
from tests.attention.test_sharing import random_family

ROOT = Path(__file__).resolve().parent.parent.parent
KEYS = (WorkKey(None, 2, 4, 8), WorkKey(5, 1, 1, 3), WorkKey(40, 8, 16, 128))


def work_of(case: Case, key: WorkKey, budget: Budget) -> Work:
    plan = case.plan
    return plan_work(from_sequences(plan.sequences, key.window), plan.slots.shape[0], key, budget)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("seed", range(20))
def test_every_visible_position_is_in_exactly_one_item_of_its_row(key: WorkKey, seed: int) -> None:
    case = random_case(seed)
    work = work_of(case, key, Budget(num_programs=16, min_tokens=16))
    seen = [np.zeros(s.position + s.num_queries, np.int64) for s in case.plan.sequences for _ in range(s.num_queries)]
    for first, count, _, lo, hi in np.concatenate([work.narrow, work.wide]).tolist():
        for row, _, _, low, high in work.entries[first : first + count].tolist():
            seen[row][max(lo, low) : min(hi, high)] += 1
    row = 0
    for sequence in case.plan.sequences:
        for expected in dense_mask(sequence, key.window):
            assert np.array_equal(seen[row], expected.numpy().astype(np.int64))
            row += 1


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("seed", range(20))
def test_a_row_is_written_by_its_only_item_or_merged_of_all_its_parts(key: WorkKey, seed: int) -> None:
    case = random_case(seed)
    work = work_of(case, key, Budget(num_programs=16, min_tokens=16))
    merged = {row: set(range(first, stop)) for row, first, stop in work.merges.tolist()}
    parts: dict[int, list[int]] = {}
    for row, part, *_ in work.entries.tolist():
        parts.setdefault(row, []).append(part)
    for row in range(case.plan.slots.shape[0]):
        found = parts.get(row, [])
        assert (found == [NO_PART]) != (row in merged)
        if row in merged:
            assert sorted(found) == sorted(merged[row])
    assert sorted(p for own in merged.values() for p in own) == list(range(work.num_parts))


def test_items_stay_within_what_a_captured_graph_has_room_for() -> None:
    rng = random.Random(0)
    key, budget = WorkKey(None, 2, 4, 8), Budget(num_programs=32, min_tokens=16)
    for _ in range(50):
        count = rng.randint(1, 40)
        sequences = tuple(
            SequencePlan(i, 1, end - 1, tuple(range(-(-end // 16))), (Run(0, end),))
            for i, end in enumerate(rng.randint(1, 3000) for _ in range(count))
        )
        work = plan_work(from_sequences(sequences, None), count, key, budget)
        assert count <= len(work.narrow) <= count + budget.num_items(key)
        lengths = work.narrow[:, 4] - work.narrow[:, 3]
        assert (np.diff(lengths) <= 0).all()


@pytest.mark.parametrize(
    ("heads", "kv_heads", "key_dim", "value_dim", "dtype"),
    [
        (5, 1, 80, 80, torch.float32),
        (2, 2, 40, 40, torch.float32),
        (2, 2, 192, 128, torch.float32),
        (20, 1, 8, 24, torch.float32),
        (2, 1, 256, 256, torch.bfloat16),
    ],
)
def test_heads_of_any_size_equal_the_dense_oracle(
    heads: int, kv_heads: int, key_dim: int, value_dim: int, dtype: torch.dtype
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    generator = torch.Generator().manual_seed(1)

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype).double()

    spec = LayerSpec(heads, kv_heads, key_dim, value_dim, key_dim**-0.5)
    shapes = ((37, 1), (9, 6))
    contexts = tuple((noise(p + q, kv_heads, key_dim), noise(p + q, kv_heads, value_dim)) for p, q in shapes)
    keys, values = torch.zeros(64, kv_heads, key_dim), torch.zeros(64, kv_heads, value_dim)
    keys[:37], values[:37] = (part[:37] for part in contexts[0])
    keys[48:57], values[48:57] = (part[:9] for part in contexts[1])
    sequences = (
        SequencePlan(0, 1, 37, (0, 1, 2), (Run(0, 38),)),
        SequencePlan(1, 6, 9, (3,), (Run(0, 15),)),
    )
    slots = torch.tensor([37, *range(57, 63)])
    case = Case(
        StepPlan(sequences, slots, 16),
        spec,
        noise(7, heads, key_dim).to(dtype),
        torch.cat([k[p:] for (p, _), (k, _) in zip(shapes, contexts, strict=True)]).to(dtype),
        torch.cat([v[p:] for (p, _), (_, v) in zip(shapes, contexts, strict=True)]).to(dtype),
        LayerCache(keys.to(dtype), values.to(dtype)),
        contexts,
        None,
    )
    backend = create_backend("triton")
    output = backend.prepare(case.plan).attend(spec, case.query, case.key, case.value, case.cache)
    allowed = 1e-5 if dtype == torch.float32 else 0.03
    assert (output.double() - dense_oracle(case)).abs().max() < allowed


def family_case(seed: int) -> Case:
    """Contexts that fork from one another: what they have in common lies in the same pages."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    page_tokens = rng.choice([1, 4, 16])
    sequences = sorted(random_family(rng, page_tokens), key=lambda sequence: sequence.row_start)
    spec = random_spec(rng)
    used = sorted({page for sequence in sequences for page in sequence.page_table} - {-1})
    place = {page: i for i, page in enumerate(used)} | {-1: -1}
    sequences = [s._replace(page_table=tuple(place[page] for page in s.page_table)) for s in sequences]
    num_slots = len(used) * page_tokens
    keys = torch.randn(num_slots, spec.num_kv_heads, spec.key_dim, generator=generator)
    values = torch.randn(num_slots, spec.num_kv_heads, spec.value_dim, generator=generator)
    slots, contexts = [], []
    for s in sequences:
        end = s.position + s.num_queries
        own = [max(0, s.page_table[j // page_tokens] * page_tokens + j % page_tokens) for j in range(end)]
        slots += own[s.position :]
        contexts.append((keys[own].double(), values[own].double()))
    return Case(
        StepPlan(tuple(sequences), torch.tensor(slots), page_tokens),
        spec,
        torch.randn(len(slots), spec.num_heads, spec.key_dim, generator=generator),
        keys[slots],
        values[slots],
        LayerCache(keys.clone(), values.clone()),
        tuple(contexts),
        None,
    )


@pytest.mark.parametrize("seed", range(12))
def test_contexts_that_fork_from_one_another_equal_the_dense_oracle(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr("kea.attention.triton_step.SHARING_COSTS", SharingCosts(1.0, 0.1, 0.0))
    case = family_case(seed)
    prepared = create_backend("triton").prepare(case.plan)
    for window in (case.spec.window, None):
        layer = replace(case, spec=replace(case.spec, window=window))
        output = prepared.attend(layer.spec, case.query, case.key, case.value, case.cache)
        assert (output.double() - dense_oracle(layer)).abs().max() < 1e-5


def test_a_common_prefix_is_read_once_for_all_its_queries() -> None:
    prefix = tuple(range(64))
    sequences = tuple(SequencePlan(i, 1, 1040, (*prefix, 100 + i, 200 + i), (Run(0, 1041),)) for i in range(32))
    work = StepWork(StepPlan(sequences, torch.zeros(32, dtype=torch.int64), 16), SharingPlanner())
    planned = work.plan(WorkKey(None, 1, 4, 32), Budget(num_programs=1, min_tokens=4096))
    assert [row[1:2] + row[3:] for row in planned.wide.tolist()] == [[32, 0, 1024]]
    assert sorted(planned.narrow[:, 3:].tolist()) == [[1024, 1041]] * 32


class StaticRun:
    """A static plan with the tensors of one layer around it, as a captured graph would hold them."""

    def __init__(self, like: Case, device: str, num_rows: int = 256, num_slots: int = 4096) -> None:
        spec = self.spec = like.spec
        shape = StaticShape(num_rows, num_slots, like.plan.page_tokens, is_simple=False)
        self.slots = torch.full((num_rows,), -1, dtype=torch.int64, device=device)
        backend: Any = create_backend("triton", device)
        self.plan: StaticPlan = backend.create_static(shape, [spec], torch.float32, self.slots)
        self.query = torch.zeros(num_rows, spec.num_heads, spec.key_dim, device=device)
        self.key = torch.zeros(num_rows, spec.num_kv_heads, spec.key_dim, device=device)
        self.value = torch.zeros(num_rows, spec.num_kv_heads, spec.value_dim, device=device)
        keys = torch.zeros(num_slots, spec.num_kv_heads, spec.key_dim, device=device)
        self.cache = LayerCache(keys, torch.zeros(num_slots, spec.num_kv_heads, spec.value_dim, device=device))

    def fill(self, case: Case) -> int:
        """Put a step into the plan and the tensors; return its number of rows."""
        num_rows = case.query.shape[0]
        assert self.plan.try_fill(case.plan)
        self.slots.fill_(-1)
        self.slots[:num_rows] = case.plan.slots
        self.query[:num_rows], self.key[:num_rows], self.value[:num_rows] = case.query, case.key, case.value
        self.cache.keys[: len(case.cache.keys)] = case.cache.keys
        self.cache.values[: len(case.cache.values)] = case.cache.values
        return num_rows

    def attend(self) -> torch.Tensor:
        return self.plan.attend(self.spec, self.query, self.key, self.value, self.cache)


def test_one_static_plan_runs_one_step_after_the_other() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    base = replace(random_case(8), sinks=None)
    static = StaticRun(base, "cpu")
    for seed in (300, 301, 302):
        step = replace(random_case(seed, like=base), sinks=None)
        num_rows = static.fill(step)
        output = static.attend()
        assert (output[:num_rows].double() - dense_oracle(step)).abs().max() < 1e-5
        assert torch.equal(output[num_rows:], torch.zeros_like(output[num_rows:]))


def test_partial_results_are_aligned_whatever_their_number() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from kea.attention.triton_state import DeviceState

    state, spec = DeviceState(torch.device("cpu")), LayerSpec(7, 7, 16, 24, 1.0)
    for num_parts in (1, 2, 3, 5, 1, 64):
        parts = state.parts(num_parts, spec).of_layer(num_parts, spec)
        assert parts.lse.numel() == num_parts * 7
        assert parts.outputs.numel() == num_parts * 7 * 24
        assert parts.outputs.storage_offset() % 4 == 0
        assert parts.outputs.storage_offset() >= parts.lse.numel()


def test_a_step_that_does_not_fit_changes_nothing() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    base = replace(random_case(8, num_sequences=2), sinks=None)
    num_rows = base.query.shape[0]
    static = StaticRun(base, "cpu", num_rows=num_rows)
    static.fill(base)
    before = static.attend()
    larger = random_case(301, like=base, num_sequences=9)
    assert larger.query.shape[0] > num_rows
    assert not static.plan.try_fill(larger.plan)
    assert torch.equal(static.attend(), before)


def test_a_layer_of_another_dtype_is_refused_by_name() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    case = random_case(0, dtype=torch.float64)
    with pytest.raises(InvalidRequest, match=r"backend 'triton' computes in .*; the model is in torch\.float64"):
        create_backend("triton").prepare(case.plan).attend(case.spec, case.query, case.key, case.value, case.cache)


def run_without_interpreter(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_cpu_is_refused_unless_the_kernels_are_interpreted() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    code = "from kea.attention import StaticPlan, StaticShape, create_backend; create_backend('triton', 'cpu')"
    result = run_without_interpreter("-c", code)
    assert "backend is 'triton', which runs on a GPU; device is 'cpu'." in result.stderr


def test_the_compiler_for_hopper_takes_the_kernels_without_spilling_registers() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    result = run_without_interpreter("-m", "tools.triton_resources", "32:8:128:128")
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    assert len(rows) == 18
    # The compiler's cosine has a table on the stack for phases that ours never are.
    spilled = {tuple(row[:3]): int(row[-1]) for row in rows if row[2] != "begin"}
    assert set(spilled.values()) == {0}, spilled

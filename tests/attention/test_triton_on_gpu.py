"""The backend `triton` on a GPU: the contract compiled instead of interpreted, without a wait, and in a CUDA graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kea.attention import create_backend
from kea.attention.base import LayerCache, StepPlan
from tests.attention.plans import Case, dense_oracle, random_case
from tests.attention.test_triton import StaticRun, family_case

pytestmark = pytest.mark.gpu

DEVICE = "cuda:0"
ALLOWED = {torch.float32: 2e-5, torch.bfloat16: 0.15, torch.float16: 0.03}


@pytest.fixture(autouse=True)
def compiled() -> None:
    """What is interpreted shows nothing here."""
    from kea.attention.triton_kernels import is_interpreted

    assert torch.cuda.is_available()
    assert not is_interpreted()


def on_gpu(case: Case) -> Case:
    plan = StepPlan(case.plan.sequences, case.plan.slots.to(DEVICE), case.plan.page_tokens)
    moved = {name: getattr(case, name).to(DEVICE) for name in ("query", "key", "value")}
    cache = LayerCache(case.cache.keys.to(DEVICE), case.cache.values.to(DEVICE))
    return replace(case, plan=plan, cache=cache, sinks=None if case.sinks is None else case.sinks.to(DEVICE), **moved)


def attend(case: Case) -> torch.Tensor:
    moved = on_gpu(case)
    prepared = create_backend("auto", DEVICE).prepare(moved.plan)
    return prepared.attend(moved.spec, moved.query, moved.key, moved.value, moved.cache, sinks=moved.sinks)


@pytest.mark.parametrize("dtype", ALLOWED)
@pytest.mark.parametrize("seed", range(40))
def test_random_step_equals_the_dense_oracle(seed: int, dtype: torch.dtype) -> None:
    case = random_case(seed, dtype=dtype)
    assert (attend(case).cpu().double() - dense_oracle(case)).abs().max() < ALLOWED[dtype]


@pytest.mark.parametrize("seed", range(100, 110))
def test_a_large_decode_batch_equals_the_dense_oracle(seed: int) -> None:
    case = random_case(seed, num_sequences=40)
    assert (attend(case).cpu().double() - dense_oracle(case)).abs().max() < ALLOWED[torch.float32]


@pytest.mark.parametrize("seed", range(20))
def test_contexts_that_fork_from_one_another_equal_the_dense_oracle(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from kea.attention.sharing import SharingCosts

    monkeypatch.setattr("kea.attention.triton_step.SHARING_COSTS", SharingCosts(1.0, 0.1, 0.0))
    case = family_case(seed)
    assert (attend(case).cpu().double() - dense_oracle(case)).abs().max() < ALLOWED[torch.float32]


def test_nothing_waits_for_the_device() -> None:
    case = on_gpu(random_case(3))
    backend = create_backend("triton", DEVICE)
    for _ in range(2):  # the first compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            prepared = backend.prepare(case.plan)
            prepared.attend(case.spec, case.query, case.key, case.value, case.cache, sinks=case.sinks)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_one_captured_graph_runs_other_steps() -> None:
    base = replace(random_case(8), sinks=None)
    static = StaticRun(base, DEVICE)
    static.attend()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = static.attend()
    for seed in range(300, 308):
        step = replace(random_case(seed, like=base), sinks=None)
        num_rows = static.fill(on_gpu(step))
        graph.replay()
        assert (output[:num_rows].cpu().double() - dense_oracle(step)).abs().max() < ALLOWED[torch.float32]
        assert torch.equal(output[num_rows:], torch.zeros_like(output[num_rows:]))

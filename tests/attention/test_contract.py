"""The contract of every attention backend: equal to a dense fp64 oracle on random steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kea.attention import Run, SequencePlan, StepPlan, create_backend
from kea.attention.base import AttentionBackend, LayerCache, LayerSpec
from kea.attention.storage import pack
from kea.errors import InvalidRequest, Unsupported
from tests.attention.plans import Case, dense_oracle, random_case, rounded

BACKENDS = ("reference", "torch", "numba", "triton")
ROUNDING = {"reference", "numba"}
"""Backends over a cache of all types in which it can be kept."""

NUM_STEPS = 60
NUM_INTERPRETED_STEPS = 20  # Triton's interpreter takes about half a second for one


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> AttentionBackend:
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    return create_backend(request.param)


def steps(first: int, count: int, interpreted: int) -> list[tuple[str, int]]:
    """Return (backend, seed) for as many random steps as a backend has time for."""
    return [
        (name, seed) for name in BACKENDS for seed in range(first, first + (interpreted if name == "triton" else count))
    ]


def run(backend: AttentionBackend, case: Case) -> torch.Tensor:
    prepared = backend.prepare(case.plan)
    return prepared.attend(case.spec, case.query, case.key, case.value, case.cache, sinks=case.sinks)


@pytest.mark.parametrize(("backend", "seed"), steps(0, NUM_STEPS, NUM_INTERPRETED_STEPS), indirect=["backend"])
def test_random_step_equals_the_dense_oracle(backend: AttentionBackend, seed: int) -> None:
    case = random_case(seed)
    assert (run(backend, case).double() - dense_oracle(case)).abs().max() < 1e-5


@pytest.mark.parametrize(("backend", "seed"), steps(100, 10, 1), indirect=["backend"])
def test_a_large_decode_batch_equals_the_dense_oracle(backend: AttentionBackend, seed: int) -> None:
    case = random_case(seed, num_sequences=40)
    assert (run(backend, case).double() - dense_oracle(case)).abs().max() < 1e-5


def test_one_plan_serves_layers_of_different_windows(backend: AttentionBackend) -> None:
    case = random_case(7, num_sequences=6)
    prepared = backend.prepare(case.plan)
    for window in (None, 4, 40, None, 4):
        layer = replace(case, spec=replace(case.spec, window=window))
        output = prepared.attend(layer.spec, case.query, case.key, case.value, case.cache, sinks=case.sinks)
        assert (output.double() - dense_oracle(layer)).abs().max() < 1e-5


def test_new_keys_and_values_land_in_their_slots_and_nowhere_else(backend: AttentionBackend) -> None:
    case = random_case(3)
    before = LayerCache(case.cache.keys.clone(), case.cache.values.clone())
    run(backend, case)
    before.keys[case.plan.slots] = case.key
    before.values[case.plan.slots] = case.value
    assert torch.equal(case.cache.keys, before.keys)
    assert torch.equal(case.cache.values, before.values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
@pytest.mark.parametrize("backend", sorted(ROUNDING), indirect=True)
class TestRounded:
    """Over keys and values that are kept in less: equal to the oracle over what the cache holds of them."""

    def test_random_step_equals_the_dense_oracle(self, backend: AttentionBackend, dtype: torch.dtype) -> None:
        for seed in range(NUM_STEPS):
            case = rounded(random_case(seed), dtype)
            assert (run(backend, case).double() - dense_oracle(case)).abs().max() < 1e-5

    def test_a_large_decode_batch_equals_the_dense_oracle(self, backend: AttentionBackend, dtype: torch.dtype) -> None:
        for seed in range(100, 105):
            case = rounded(random_case(seed, num_sequences=40), dtype)
            assert (run(backend, case).double() - dense_oracle(case)).abs().max() < 1e-5

    def test_new_keys_and_values_are_rounded_into_their_slots_and_nowhere_else(
        self, backend: AttentionBackend, dtype: torch.dtype
    ) -> None:
        case = rounded(random_case(3), dtype)
        before = LayerCache(case.cache.keys.clone(), case.cache.values.clone())
        run(backend, case)
        before.keys[case.plan.slots] = pack(case.key, dtype)
        before.values[case.plan.slots] = pack(case.value, dtype)
        assert torch.equal(case.cache.keys, before.keys)
        assert torch.equal(case.cache.values, before.values)

    def test_what_lies_outside_the_runs_never_reaches_the_output(
        self, backend: AttentionBackend, dtype: torch.dtype
    ) -> None:
        spec, plan, cache = single_context(1, 10, (Run(0, 3), Run(6, 11)))
        cache.keys[3:6], cache.values[3:6] = torch.nan, torch.nan
        cache = LayerCache(pack(cache.keys, dtype), pack(cache.values, dtype))
        row = torch.ones(1, 1, 8)
        output = backend.prepare(plan).attend(spec, torch.ones(1, 2, 8), row, row, cache)
        assert output.abs().max() < 10

    def test_a_key_that_cannot_be_kept_reaches_whoever_sees_it(
        self, backend: AttentionBackend, dtype: torch.dtype
    ) -> None:
        spec, plan, cache = single_context(1, 10, (Run(0, 11),))
        cache = LayerCache(pack(cache.keys, dtype), pack(cache.values, dtype))
        key, value = torch.full((1, 1, 8), -torch.inf), torch.ones(1, 1, 8)
        output = backend.prepare(plan).attend(spec, torch.ones(1, 2, 8), key, value, cache)
        assert output.isnan().all()


def test_a_backend_that_cannot_read_a_cache_says_so() -> None:
    case = rounded(random_case(3), torch.int8)
    with pytest.raises(Unsupported, match=r"does not read keys and values in torch\.int8"):
        run(create_backend("torch"), case)


def single_context(num_queries: int, position: int, runs: tuple[Run, ...]) -> tuple[LayerSpec, StepPlan, LayerCache]:
    end = position + num_queries
    spec = LayerSpec(2, 1, 8, 8, 0.3)
    plan = StepPlan((SequencePlan(0, num_queries, position, (0, 1, 2, 3), runs),), torch.arange(position, end), 4)
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(16, 1, 8, generator=generator) for _ in range(2))
    return spec, plan, LayerCache(keys, values)


def test_a_query_that_sees_nothing_gives_zeros_and_does_not_disturb_its_neighbours(backend: AttentionBackend) -> None:
    spec, plan, cache = single_context(4, 4, (Run(6, 8),))  # the queries at 4 and 5 see no key
    query, key, value = torch.ones(4, 2, 8), torch.ones(4, 1, 8), torch.ones(4, 1, 8)
    for sinks in (None, torch.zeros(2)):
        output = backend.prepare(plan).attend(spec, query, key, value, cache, sinks=sinks)
        assert torch.equal(output[:2], torch.zeros(2, 2, 8))
        assert output[2:].abs().min() > 0.1


def test_what_lies_outside_the_runs_never_reaches_the_output(backend: AttentionBackend) -> None:
    spec, plan, cache = single_context(1, 10, (Run(0, 3), Run(6, 11)))
    cache.keys[3:6], cache.values[3:6] = 1e30, 1e30
    output = backend.prepare(plan).attend(spec, torch.ones(1, 2, 8), torch.ones(1, 1, 8), torch.ones(1, 1, 8), cache)
    assert output.abs().max() < 10


def test_splitting_a_run_changes_nothing(backend: AttentionBackend) -> None:
    query, key, value = (torch.randn(1, heads, 8) for heads in (2, 1, 1))
    outputs = []
    for runs in ((Run(0, 11),), (Run(0, 5), Run(5, 6), Run(6, 11))):
        spec, plan, cache = single_context(1, 10, runs)
        outputs.append(backend.prepare(plan).attend(spec, query, key, value, cache))
    assert torch.allclose(outputs[0], outputs[1], atol=1e-6)


def test_a_long_chunk_is_cut_into_blocks_without_a_seam(
    backend: AttentionBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kea.attention.tiles.MAX_BLOCK_QUERIES", 5)
    for seed in range(20, 23 if backend.name == "triton" else 30):
        case = random_case(seed)
        assert (run(backend, case).double() - dense_oracle(case)).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_the_oracle(backend: AttentionBackend, dtype: torch.dtype) -> None:
    for seed in range(5):
        case = random_case(seed, dtype=dtype)
        output = run(backend, case)
        assert output.dtype == dtype
        assert (output.double() - dense_oracle(case)).abs().max() < 0.15


def test_a_backend_that_calls_itself_batch_invariant_is_so_bitwise(backend: AttentionBackend) -> None:
    if not backend.batch_invariant:
        pytest.skip(f"{backend.name} does not claim it")
    case = random_case(11, num_sequences=5)
    together = run(backend, case)
    for sequence in case.plan.sequences:
        rows = slice(sequence.row_start, sequence.row_start + sequence.num_queries)
        alone = StepPlan((sequence._replace(row_start=0),), case.plan.slots[rows], case.plan.page_tokens)
        parts = (case.query[rows], case.key[rows], case.value[rows])
        assert torch.equal(
            backend.prepare(alone).attend(case.spec, *parts, case.cache, sinks=case.sinks), together[rows]
        )


def test_an_unknown_backend_is_refused_by_name() -> None:
    with pytest.raises(
        InvalidRequest, match=r"backend is 'fast'; it must be one of auto, torch, numba, triton, reference\."
    ):
        create_backend("fast")

"""Attention of many queries by tiles: equal to the dense oracle, whatever the shape and the format."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kea.attention import Run, SequencePlan, StepPlan, create_backend
from kea.attention.base import LayerCache
from kea.kernels.tiles import has_tiles
from tests.attention.plans import Case, dense_oracle, random_case, rounded

pytestmark = pytest.mark.skipif(not has_tiles(), reason="the processor has no tiles")

DIMS = [(32, 32), (64, 64), (64, 32), (96, 128)]


def run(case: Case) -> torch.Tensor:
    prepared = create_backend("numba").prepare(case.plan)
    return prepared.attend(case.spec, case.query, case.key, case.value, case.cache, sinks=case.sinks)


def wide_case(seed: int, dims: tuple[int, int], group: int) -> Case:
    """Return a random step of a layer with heads of these dimensions, with chunks of many queries in most of them."""
    spec = random_case(seed).spec
    heads = spec.num_kv_heads * group
    like = replace(random_case(seed), spec=replace(spec, num_heads=heads, key_dim=dims[0], value_dim=dims[1]))
    return random_case(seed + 1000, num_sequences=1 + seed % 5, like=like)


def shared_case(dtype: torch.dtype, num_rows: int = 33, prefix: int = 200) -> Case:
    """Return a step of contexts of one token behind a common prefix, all pages in order."""
    like = wide_case(1, (64, 64), 3)
    spec = replace(like.spec, num_heads=6, num_kv_heads=2, window=None, softcap=None, scale=0.2)
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn((prefix + num_rows, 2, 64), generator=generator) for _ in range(2))
    sequences = tuple(
        SequencePlan(row, 1, prefix, (*range(prefix), prefix + row), (Run(0, prefix + 1),)) for row in range(num_rows)
    )
    kept = [
        torch.cat([tensor[:prefix], tensor[prefix + row, None]]) for row in range(num_rows) for tensor in (keys, values)
    ]
    case = Case(
        plan=StepPlan(sequences, torch.arange(prefix, prefix + num_rows), 1),
        spec=spec,
        query=torch.randn((num_rows, 6, 64), generator=generator),
        key=keys[prefix:],
        value=values[prefix:],
        cache=LayerCache(keys.clone(), values.clone()),
        contexts=tuple((k.double(), v.double()) for k, v in zip(kept[::2], kept[1::2], strict=True)),
        sinks=None,
    )
    return case if dtype == torch.float32 else rounded(case, dtype)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_random_steps_equal_the_dense_oracle(dims: tuple[int, int], dtype: torch.dtype) -> None:
    for seed in range(12):
        case = wide_case(seed, dims, 1 + seed % 5)
        case = case if dtype == torch.float32 else rounded(case, dtype)
        assert (run(case).double() - dense_oracle(case)).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
@pytest.mark.parametrize("prefix", [1, 31, 64, 200, 300])
def test_a_shared_prefix_equals_the_dense_oracle(dtype: torch.dtype, prefix: int) -> None:
    case = shared_case(dtype, prefix=prefix)
    assert (run(case).double() - dense_oracle(case)).abs().max() < 1e-5


def test_errors_are_those_of_fp32() -> None:
    """A part that is missing would leave errors of 1e-5 and more."""
    case = shared_case(torch.float32, num_rows=64, prefix=300)
    assert (run(case).double() - dense_oracle(case)).abs().max() < 1.5e-6


def test_a_key_that_is_not_finite_reaches_whoever_sees_it() -> None:
    case = shared_case(torch.float32)
    case.cache.keys[17, 1, 3] = torch.inf
    output = run(case)
    assert output[:, 3:].isnan().all()
    assert output[:, :3].isfinite().all()


def test_what_lies_behind_the_end_never_reaches_the_output() -> None:
    case = shared_case(torch.float32, prefix=200)
    padded = torch.full((100, 2, 64), torch.nan)
    cache = LayerCache(torch.cat([case.cache.keys, padded]), torch.cat([case.cache.values, padded]))
    assert (run(replace(case, cache=cache)).double() - dense_oracle(case)).abs().max() < 1e-5

"""Matrix products: every path and every shape equals numpy's product in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kea.attention.jit import running_kernels
from kea.models.lean.products import MAX_OWN_ROWS, PANEL_VALUES, apply_linear
from kea.models.lean.weights import NO_BIAS, Linear, expand, pack


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 7, 8, 31, MAX_OWN_ROWS, MAX_OWN_ROWS + 1])
@pytest.mark.parametrize("shape", [(1, 8), (3, 5), (4, 16), (7, 33), (130, 64)])
@pytest.mark.parametrize("is_16_bit", [True, False])
def test_products_equal_numpy(num_rows: int, shape: tuple[int, int], is_16_bit: bool) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    values = torch.randn(shape, generator=generator)
    weight = pack([values.bfloat16().float() if is_16_bit else values])
    assert weight.dtype == ("uint16" if is_16_bit else "float32")
    x = torch.randn(num_rows, shape[1], generator=generator).numpy()
    out = np.full((num_rows, shape[0]), np.nan, np.float32)
    bias = torch.randn(shape[0], generator=generator).numpy()
    expected = x.astype(np.float64) @ expand(weight).astype(np.float64).T
    for vector in (NO_BIAS, bias):
        with running_kernels() as num_threads:
            apply_linear(x, Linear(weight, vector), out, num_threads)
        assert np.abs(out - (expected + (vector if vector.size else 0.0))).max() < 1e-4


def test_a_wide_matrix_goes_through_several_panels() -> None:
    width = PANEL_VALUES // 100
    values = torch.randn(350, width, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    x = torch.randn(MAX_OWN_ROWS + 3, width, generator=torch.Generator().manual_seed(1)).numpy()
    out = np.empty((len(x), 350), np.float32)
    with running_kernels() as num_threads:
        apply_linear(x, Linear(pack([values]), NO_BIAS), out, num_threads)
    assert np.allclose(out, x @ values.numpy().T, atol=1e-3)

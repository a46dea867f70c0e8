"""Matrix products of the lean decoder: few rows by our kernel, many by torch's on single threads. Knows no models."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from kea.attention.jit import spread
from kea.models.lean import kernels
from kea.models.lean.weights import Linear, Matrix

F32 = NDArray[np.float32]

MAX_OWN_ROWS = 64
"""Rows of x up to which our kernel is used: it streams the weights once; torch's blocking pays above."""

PANEL_VALUES = 1 << 18
"""Weights widened at a time for torch's product: small enough to stay in cache until they are used."""


def apply_linear(x: F32, linear: Linear, out: F32, num_threads: int) -> None:
    """Write x W^T + b of x [M, K] to `out` [M, N]. To be called where `running_kernels` gave `num_threads`."""
    weight = linear.weight
    if x.shape[0] <= MAX_OWN_ROWS:
        kernels.product(x, weight, out, num_threads)
    else:
        bounds = [part * weight.shape[0] // num_threads for part in range(num_threads + 1)]
        rows, product = torch.from_numpy(x), torch.from_numpy(out)
        spread(
            num_threads,
            lambda part: _apply_torch(
                rows, weight[bounds[part] : bounds[part + 1]], product[:, bounds[part] : bounds[part + 1]]
            ),
        )
    if linear.bias.size:
        kernels.add_bias(out, linear.bias)


def _apply_torch(rows: torch.Tensor, weight: Matrix, out: torch.Tensor) -> None:
    """Write the product with some rows of W to the same columns of the output; packed weights are widened by panels."""
    if weight.dtype == np.float32:
        torch.mm(rows, torch.from_numpy(weight).T, out=out)
        return
    step = max(1, PANEL_VALUES // weight.shape[1])
    panels = np.empty((min(step, weight.shape[0]), weight.shape[1]), np.float32)
    for lo in range(0, weight.shape[0], step):
        part = weight[lo : lo + step]
        panel = panels[: len(part)]
        kernels.widen_rows(part, panel)
        torch.mm(rows, torch.from_numpy(panel).T, out=out[:, lo : lo + len(part)])

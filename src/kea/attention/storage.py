"""How keys and values are kept: as the arithmetic has them, or rounded to less. Owns the layout of a cache's rows.

The types are torch's: float32, bfloat16 and float16 hold a head's values as they are; int8 rows hold a head's values
and behind them, in four bytes more, the fp32 by which they are multiplied (`kea.kernels.narrow`). Rows of zeros are
zeros in all of them. These functions are the definition; kernels do the same in vectors.
"""

from __future__ import annotations

import torch

from kea.kernels.narrow import SCALE_BYTES, SMALLEST, STEPS


def row_width(dtype: torch.dtype, head_dim: int) -> int:
    """Return how many elements a head's row has."""
    return head_dim + SCALE_BYTES if dtype == torch.int8 else head_dim


def head_bytes(dtype: torch.dtype, head_dim: int) -> int:
    return row_width(dtype, head_dim) * dtype.itemsize


def pack(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round heads [..., D] to rows of a type, to the nearest, ties to even; a row with what is not finite stays so, and
    one of float16 with what is too large becomes so."""
    if dtype != torch.int8:
        rows = values.to(dtype)
        if dtype == torch.float16:
            rows[..., 0][~rows.isfinite().all(-1)] = torch.nan
        return rows
    values = values.float()
    largest = values.abs().amax(-1, keepdim=True)
    is_normal = largest > SMALLEST
    inverse = torch.where(is_normal, torch.full_like(largest, STEPS) / largest, 0.0)  # a number / x is 1 / x times it
    steps = (values * inverse).round().nan_to_num(0.0).to(torch.int8)
    scale = torch.where(is_normal, largest * (1 / STEPS), 0.0)
    scale[~values.isfinite().all(-1)] = torch.nan
    return torch.cat([steps, scale.view(torch.int8)], dim=-1)


def unpack(rows: torch.Tensor) -> torch.Tensor:
    """Return the values [..., D] that rows hold: fp32 of int8 ones, else the rows themselves."""
    return rows[..., :-SCALE_BYTES].float() * scales(rows) if rows.dtype == torch.int8 else rows


def scales(rows: torch.Tensor) -> torch.Tensor:
    """Return the scales [..., 1] of int8 rows."""
    return rows[..., -SCALE_BYTES:].clone(memory_format=torch.contiguous_format).view(torch.float32)


def telling(rows: torch.Tensor) -> torch.Tensor:
    """Return numbers that are finite where what the rows hold is: less than all of it, where that tells."""
    return scales(rows) if rows.dtype == torch.int8 else rows

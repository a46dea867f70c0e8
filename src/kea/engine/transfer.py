"""Small arrays on their way from the host to the device, without waiting for it. Knows nothing of what they mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray


def send(values: torch.Tensor | NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Return the values on the device. The copy takes its place in the device's queue; the host goes on at once.

    The host's memory may be reused then: a copy from memory that is not pinned has left it when it is queued.
    """
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
    return tensor.to(device, non_blocking=True)


def send_index(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return whole numbers as an index [n] int64 on the device."""
    return send(np.array(values, dtype=np.int64), device)

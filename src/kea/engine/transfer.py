"""Small arrays on their way between host and device, without waiting for it. Knows nothing of what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def send(values: torch.Tensor | NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Return the values on the device. The copy takes its place in the device's queue; the host goes on at once.

    On a GPU by way of pinned memory, which torch keeps until the copy is done: a large copy from other memory would
    wait for all that was queued before it.
    """
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def send_index(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return whole numbers as an index [n] int64 on the device."""
    return send(np.array(values, dtype=np.int64), device)


class Fetched:
    """A tensor's values on their way to the host, where its memory on the device may be used again."""

    def __init__(self, values: torch.Tensor) -> None:
        self._host, self._done = values, None
        if values.device.type == "cuda":
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            event: Any = torch.cuda.Event
            self._done = event()
            self._done.record()

    def tolist(self) -> Any:
        """Wait for the values, and for nothing that was queued behind them; return them."""
        if self._done is not None:
            self._done.synchronize()
        return self._host.tolist()

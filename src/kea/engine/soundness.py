"""Whether what a step wrote into the KV memory are finite numbers. Knows no requests' contents, no models.

The last layer tells: what is not finite in a layer before reaches it through the residual stream.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kea.attention.base import LayerCache
from kea.attention.storage import telling
from kea.engine.draft import WorkItem
from kea.engine.soundness_kernels import are_finite
from kea.engine.transfer import Fetched

FindUnsound = Callable[[], list[WorkItem]]


class Soundness:
    """Looks at the rows that a step has written. Lives with the KV memory whose `last` layer it is."""

    def __init__(self, last: LayerCache) -> None:
        self._parts = (last.keys, last.values)
        self._host: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        if all(part.device.type == "cpu" and part.dtype == torch.float32 for part in self._parts):
            self._host = (last.keys.flatten(1).numpy(), last.values.flatten(1).numpy())
            are_finite(*self._host, np.empty(0, np.int64))  # so that it is compiled before the first step

    def begin(self, items: Sequence[WorkItem], slots: torch.Tensor) -> FindUnsound:
        """Return what finds the items with a row that is not finite. `slots` [T]: of all their rows, in order.

        On a device the looking is queued behind the step; who asks for the result waits for it, and not for what is
        queued behind.
        """
        if self._host is not None:
            if are_finite(*self._host, slots.numpy()):
                return list
            return lambda: _find(self._rows(slots), items)
        rows = self._rows(slots)
        sums = Fetched(torch.stack([part.sum(dtype=torch.float32) for part in rows]))
        return lambda: [] if all(map(math.isfinite, sums.tolist())) else _find(rows, items)

    def _rows(self, slots: torch.Tensor) -> list[torch.Tensor]:
        return [telling(part.index_select(0, slots)).flatten(1) for part in self._parts]


def _find(rows: Sequence[torch.Tensor], items: Sequence[WorkItem]) -> list[WorkItem]:
    is_sound = torch.cat(list(rows), dim=1).isfinite().all(dim=1).tolist()
    stops = itertools.accumulate(item.num_tokens for item in items)
    return [item for item, stop in zip(items, stops, strict=True) if not all(is_sound[stop - item.num_tokens : stop])]

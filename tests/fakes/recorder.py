"""A recorder without CUDA: what was captured is computed again, on what its tensors hold by then."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kea.models.graphs import Recording


class ComputingRecorder:
    """Replays by computing into the first output. As of a CUDA graph, nothing but tensors' content may change what
    comes out, and the output's memory stays the same.
    """

    def __init__(self) -> None:
        self.num_captured = 0

    def __call__(self, compute: Callable[[], torch.Tensor]) -> Recording:
        self.num_captured += 1
        output = compute().clone()

        def replay() -> None:
            output.copy_(compute())

        return Recording(output, replay)

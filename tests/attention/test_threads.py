"""Our kernels and torch have one budget of threads."""

from __future__ import annotations

import pytest
import torch

from kea.attention.threads import running_kernels


@pytest.mark.parametrize("num_threads", [1, 2])
def test_kernels_run_on_as_many_threads_as_torch_was_given(num_threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        with running_kernels() as granted:
            assert granted == num_threads
            assert torch.get_num_threads() == 1
            with running_kernels() as nested:
                assert nested == granted
        with running_kernels(has_operators=False) as granted:
            assert granted == torch.get_num_threads() == num_threads
        assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)

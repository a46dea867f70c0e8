"""Picks the attention backend by name and device. Imports torch only once a backend is made."""

from __future__ import annotations

from kea.attention.base import AttentionBackend
from kea.errors import InvalidRequest

BACKEND_NAMES = ("auto", "torch", "numba", "triton", "reference")


def create_backend(name: str = "auto", device: str = "cpu") -> AttentionBackend:
    """Return the backend `name` for `device`; `auto` is `triton` on a GPU, else `torch`, which runs anywhere.

    Raises `InvalidRequest` for a name that is not in `BACKEND_NAMES`, for `numba` off the CPU, for `triton` off the GPU
    unless its interpreter is on, and where Triton is not installed.
    """
    if name == "triton" or (name == "auto" and device.startswith("cuda")):
        return _create_triton(device)
    if name in {"auto", "torch"}:
        from kea.attention.gather import GatherAttention

        return GatherAttention()
    if name == "numba":
        if device != "cpu":
            raise InvalidRequest(f"backend is 'numba', which runs on a CPU; device is {device!r}.", param="backend")
        from kea.attention.numba_cpu import NumbaAttention

        return NumbaAttention()
    if name == "reference":
        from kea.attention.reference import ReferenceAttention

        return ReferenceAttention()
    raise InvalidRequest(f"backend is {name!r}; it must be one of {', '.join(BACKEND_NAMES)}.", param="backend")


def _create_triton(device: str) -> AttentionBackend:
    try:
        from kea.attention.triton_gpu import TritonAttention
        from kea.attention.triton_kernels import is_interpreted
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise InvalidRequest(
            f"backend is 'triton' on {device!r}, and Triton is not installed.",
            hint="Install kea-serve[cuda], or choose the backend 'torch'.",
            param="backend",
        ) from error
    if not (device.startswith("cuda") or is_interpreted()):
        raise InvalidRequest(f"backend is 'triton', which runs on a GPU; device is {device!r}.", param="backend")
    return TritonAttention()

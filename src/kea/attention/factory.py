"""Picks the attention backend by name and device. Imports torch only once a backend is made."""

from __future__ import annotations

from kea.attention.base import AttentionBackend
from kea.errors import InvalidRequest

BACKEND_NAMES = ("auto", "torch", "numba", "reference")


def create_backend(name: str = "auto", device: str = "cpu") -> AttentionBackend:
    """Return the backend `name` for `device`; `auto` is `torch`, which runs wherever torch runs.

    Raises `InvalidRequest` for a name that is not in `BACKEND_NAMES`, and for `numba` off the CPU.
    """
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

"""Limits that a request meets before its handler: the size of its body, requests at once per tenant.

Knows no routes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from kea.errors import LimitExceeded


class Slots:
    """Counts the requests each tenant has running. Lives as long as the server; `hold` gives a slot back at its end."""

    def __init__(self, max_per_tenant: int) -> None:
        self._max_per_tenant = max_per_tenant
        self._num_held: Counter[str] = Counter()

    @property
    def num_held(self) -> int:
        return self._num_held.total()

    @contextmanager
    def hold(self, tenant: str) -> Iterator[None]:
        """Take a slot, or raise `LimitExceeded` (retryable)."""
        if self._num_held[tenant] >= self._max_per_tenant:
            raise LimitExceeded(
                f"This key has {self._num_held[tenant]} requests running; {self._max_per_tenant} are allowed.",
                hint="Try again when one has ended.",
            )
        self._num_held[tenant] += 1
        try:
            yield
        finally:
            self._num_held[tenant] -= 1
            if not self._num_held[tenant]:
                del self._num_held[tenant]


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """Read a request's body. Raises `LimitExceeded` as soon as it is known to be longer than `max_bytes`."""
    declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    pieces, size, is_complete = [], 0, False
    while not is_complete:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece = message.get("body", b"")
        size += len(piece)
        if size > max_bytes:
            raise _too_large(max_bytes)
        pieces.append(piece)
        is_complete = not message.get("more_body", False)
    return b"".join(pieces)


def _too_large(max_bytes: int) -> LimitExceeded:
    return LimitExceeded(f"The body is longer than {max_bytes} bytes, the limit here.", param="body", retryable=False)

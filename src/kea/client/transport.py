"""How a session's operations reach a service: the contract. Knows no HTTP; all of it runs on the connection's loop.

Implementations: `embedded` (a service in this process), `http` (a server elsewhere). Both raise the same errors.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from kea.program.call import Program
from kea.program.status import SessionStatus
from kea.types import Criteria


class Channel(Protocol):
    """One open session of a service."""

    async def submit(self, program: Program) -> None: ...

    async def set(self, variable_id: str, value: str) -> None: ...

    async def get(self, variable_id: str, criteria: Criteria | None, deadline_s: float | None) -> str: ...

    def stream(self, variable_id: str, criteria: Criteria | None) -> AsyncGenerator[str]: ...

    async def cancel(self, call_ids: Sequence[str] | None) -> list[str]: ...

    async def status(self) -> SessionStatus: ...

    async def close(self) -> None:
        """End the session; one that is gone already is no error."""
        ...


class Transport(Protocol):
    """A connection to a service. `linger_s`: how long a first call waits for others to be submitted with it."""

    @property
    def linger_s(self) -> float: ...

    async def open(self) -> None: ...

    async def open_session(self, name: str) -> Channel: ...

    async def close(self) -> None: ...

"""Bodies of Kea's own session routes (docs/wire.md). Programs are read by `kea.program.wire`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from kea.server.wire.base import Body, Reply


class SessionBody(Body):
    """A session to open. `detached`: its calls run to their end also where no request and no reader comes any more."""

    name: str = Field(default="", max_length=200)
    detached: bool = False


class SessionReply(Reply):
    """A session: its id, the secret that every further request carries, and the seconds within which one has to come
    (null: calls run to their end without any).
    """

    session_id: int
    session_secret: str
    lease_s: float | None


class ProgramBody(Body):
    """A program: calls and the variables that they read."""

    calls: list[dict[str, Any]] = Field(default_factory=list)
    variables: list[dict[str, Any]] = Field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return what was sent, unknown keys included: the program's reader refuses those."""
        return {**{name: getattr(self, name) for name in type(self).model_fields}, **(self.model_extra or {})}


class ValueBody(Body):
    """The value of a variable."""

    value: str


class ReadBody(Body):
    """The variables to wait for."""

    variables: list[str]
    criteria: str | None = None


class CancelBody(Body):
    """The calls to cancel; all of them when null."""

    call_ids: list[str] | None = None


class VariableReply(Reply):
    """A variable that is ready."""

    id: str
    state: str
    value: str


class CancelReply(Reply):
    """The calls that still ran and were cancelled."""

    cancelled: list[str]


class EmptyReply(Reply):
    """Nothing but success."""

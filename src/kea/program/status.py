"""What a session tells about itself: the states of a call, a timeline row per call. Knows no clock: times are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from kea.errors import KeaError, error_from_dict


class CallState(Enum):
    """BLOCKED until its inputs are ready, QUEUED until an engine is found, RUNNING on it, then one of three ends."""

    BLOCKED = "blocked"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


_ENDS = frozenset({CallState.FAILED, CallState.CANCELLED})

# A running call whose engine died is queued again.
MOVES: dict[CallState, frozenset[CallState]] = {
    CallState.BLOCKED: _ENDS | {CallState.QUEUED},
    CallState.QUEUED: _ENDS | {CallState.RUNNING},
    CallState.RUNNING: _ENDS | {CallState.DONE, CallState.QUEUED},
    CallState.DONE: frozenset(),
    CallState.FAILED: frozenset(),
    CallState.CANCELLED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class CallRow:
    """One call of a timeline. Times in seconds: `submitted_s` since the session began, the others are durations.

    `blocked_s`: until the inputs were there. `waiting_s`: then until an engine began. `prefill_s`, `decode_s`: as the
    engine measured them, summed over the outputs, like `output_tokens`. `total_s`: submit to end. What these leave of
    it is `other_s`: the prompt's text made tokens, the way to the engine, which takes a call when its step at hand is
    done, and the way back.
    """

    id: str
    name: str
    state: CallState
    submitted_s: float
    blocked_s: float
    waiting_s: float
    prefill_s: float
    decode_s: float
    total_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    num_attempts: int
    engine: int | None
    error: KeaError | None

    @property
    def other_s(self) -> float:
        """Return what is left of `total_s`: tokenising, and the way to the engine and back."""
        return max(0.0, self.total_s - self.blocked_s - self.waiting_s - self.prefill_s - self.decode_s)

    def to_json(self) -> dict[str, Any]:
        error = None if self.error is None else self.error.to_dict()
        return {name: getattr(self, name) for name in self.__slots__} | {"state": self.state.value, "error": error}


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """One session at one moment, with its calls in the order of their submission."""

    session_id: int
    name: str
    tenant: str
    age_s: float
    num_pending: int
    num_variables: int
    calls: tuple[CallRow, ...]

    def to_json(self) -> dict[str, Any]:
        body = {name: getattr(self, name) for name in self.__slots__}
        return body | {"calls": [row.to_json() for row in self.calls]}


def row_from_json(data: Mapping[str, Any]) -> CallRow:
    """Read a row as a server sent it; keys that this version does not know are skipped."""
    body = {name: data[name] for name in CallRow.__slots__}
    error = None if data["error"] is None else error_from_dict(data["error"])
    known = {"state": CallState(data["state"]), "error": error}
    return CallRow(**body | known | {"reads": tuple(data["reads"]), "writes": tuple(data["writes"])})


def status_from_json(data: Mapping[str, Any]) -> SessionStatus:
    """Read a session's status, likewise."""
    body = {name: data[name] for name in SessionStatus.__slots__}
    return SessionStatus(**body | {"calls": tuple(row_from_json(row) for row in data["calls"])})

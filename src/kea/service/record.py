"""One call of a session while it lives: its state, its times, what its finished outputs left. Knows no loop."""

from __future__ import annotations

from dataclasses import dataclass

from kea.errors import KeaError
from kea.program.call import AnyCall
from kea.program.status import MOVES, CallRow, CallState
from kea.types import Usage


@dataclass(frozen=True, slots=True)
class WrittenOutput:
    """A finished output as the context holds it: what a second run appends instead of writing it again."""

    token_ids: tuple[int, ...]
    residual: str


class CallRecord:
    """Made when a call is accepted, kept for the timeline as long as its session. Times are the service's clock.

    `origin`: the name of the call whose failure would be told to readers, another one where an input failed.
    """

    __slots__ = (
        "ended_s",
        "engine_idx",
        "error",
        "num_attempts",
        "num_missing",
        "order",
        "origin",
        "ready_s",
        "seeds",
        "session_id",
        "spec",
        "started_s",
        "state",
        "submitted_s",
        "tenant",
        "usages",
        "written",
    )

    def __init__(self, spec: AnyCall, session_id: int, tenant: str, order: tuple[int, int], now_s: float) -> None:
        self.spec = spec
        self.session_id = session_id
        self.tenant = tenant
        self.order = order
        self.origin = spec.name
        self.state = CallState.BLOCKED
        self.num_missing = 0
        self.submitted_s = now_s
        self.ready_s: float | None = None
        self.started_s: float | None = None
        self.ended_s: float | None = None
        self.usages: list[Usage] = []
        self.written: list[WrittenOutput] = []
        self.seeds: dict[int, int] = {}
        self.num_attempts = 0
        self.engine_idx: int | None = None
        self.error: KeaError | None = None

    @property
    def key(self) -> tuple[int, str]:
        return self.session_id, self.spec.id

    @property
    def has_ended(self) -> bool:
        return not MOVES[self.state]

    def move(self, state: CallState, now_s: float) -> None:
        assert state in MOVES[self.state], f"call {self.spec.id} cannot go from {self.state.value} to {state.value}"
        self.state = state
        if state is CallState.QUEUED:
            self.ready_s = now_s if self.ready_s is None else self.ready_s
        elif state is CallState.RUNNING:
            self.started_s = now_s
            self.num_attempts += 1
        else:
            self.ended_s = now_s

    def row(self, began_s: float, now_s: float) -> CallRow:
        """Return the timeline's row, with `began_s` as its zero; what has not ended counts up to `now_s`."""
        ended_s = now_s if self.ended_s is None else self.ended_s
        ready_s = ended_s if self.ready_s is None else self.ready_s
        started_s = ended_s if self.started_s is None else self.started_s
        return CallRow(
            id=self.spec.id,
            name=self.spec.name,
            state=self.state,
            submitted_s=self.submitted_s - began_s,
            blocked_s=ready_s - self.submitted_s,
            waiting_s=max(0.0, started_s - ready_s) + sum(usage.waiting_s for usage in self.usages),
            prefill_s=sum(usage.prefill_s for usage in self.usages),
            decode_s=sum(usage.decode_s for usage in self.usages),
            total_s=ended_s - self.submitted_s,
            prompt_tokens=self.prompt_len,
            cached_tokens=sum(usage.cached_tokens for usage in self.usages[:1]),
            output_tokens=self.output_len,
            reads=self.spec.reads,
            writes=self.spec.writes,
            num_attempts=self.num_attempts,
            engine=self.engine_idx,
            error=self.error,
        )

    @property
    def output_len(self) -> int:
        """Tokens of the outputs that are written."""
        return sum(usage.output_tokens for usage in self.usages)

    @property
    def prompt_len(self) -> int:
        """Tokens appended to the context: its length before the last output, without the outputs in front of that."""
        if not self.usages:
            return 0
        earlier = self.written[: len(self.usages) - 1]
        return self.usages[-1].prompt_tokens - sum(len(output.token_ids) for output in earlier)

"""The state of one context inside the engine, and its lifecycle. Knows no torch, no batch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from kea.engine.base import ContextSpec, Operation
from kea.errors import KeaError
from kea.memory import ContextPages
from kea.types import TokenLogprob

if TYPE_CHECKING:
    from kea.engine.generation import GenerationState


class Phase(Enum):
    """UNBORN: a fork whose parent has not reached it. IDLE: nothing to compute. WAITING: for a place in the batch."""

    UNBORN = "unborn"
    IDLE = "idle"
    WAITING = "waiting"
    RUNNING = "running"
    CLOSED = "closed"


MOVES: dict[Phase, frozenset[Phase]] = {
    Phase.UNBORN: frozenset({Phase.IDLE, Phase.CLOSED}),
    Phase.IDLE: frozenset({Phase.WAITING, Phase.CLOSED}),
    Phase.WAITING: frozenset({Phase.RUNNING, Phase.IDLE, Phase.CLOSED}),
    Phase.RUNNING: frozenset({Phase.WAITING, Phase.IDLE, Phase.CLOSED}),
    Phase.CLOSED: frozenset(),
}


@dataclass(slots=True, eq=False)
class ContextState:
    """A context: its tokens, its pages, what it generates now, and the operations that wait behind that.

    The last token is always left pending while nothing is generated: it is computed when a generation needs its
    logits or when more tokens follow. So a generation always has a row to draw from.
    """

    context_id: int
    arrival: int
    spec: ContextSpec
    pages: ContextPages
    tokens: list[int] = field(default_factory=list)
    phase: Phase = Phase.IDLE
    operations: deque[Operation] = field(default_factory=deque)
    generation: GenerationState | None = None
    error: KeaError | None = None
    prompt_logprobs: dict[int, TokenLogprob] = field(default_factory=dict)
    is_scored: bool = False
    seen_len: int = 0  # the tokens below were computed before, though what came of it may be lost again
    num_fresh: int = 0  # tokens computed for the first time since the last generation ended
    num_flying: int = 0  # tokens of steps that were launched and have not landed (`kea.engine.flight`)
    num_unknown: int = 0  # of these steps, those that draw a token behind `tokens`
    is_grounded: bool = False  # takes part in no further step before those have landed

    @property
    def goal(self) -> int:
        """The number of tokens that should be computed now, with those that are being drawn."""
        if self.generation is not None:
            return len(self.tokens) + self.num_unknown
        return max(0, len(self.tokens) - 1)

    @property
    def start(self) -> int:
        """The first position that is neither computed nor in a step on its way."""
        return self.pages.num_computed + self.num_flying

    @property
    def num_pending(self) -> int:
        if self.error is not None or self.is_grounded:
            return 0
        return self.goal - self.start

    @property
    def wants_scores(self) -> bool:
        """Whether the prompt's log-probabilities are asked for and not yet reported: every row has to be computed."""
        return self.spec.prompt_logprobs is not None and not self.is_scored

    @property
    def scores_until(self) -> int:
        """The rows below this one give a prompt token's log-probability (0 when none is wanted)."""
        if not self.wants_scores:
            return 0
        prompt_len = len(self.tokens) if self.generation is None else self.generation.prompt_len
        return prompt_len - 1

    @property
    def is_busy(self) -> bool:
        """Whether a new operation must wait behind another."""
        return self.generation is not None or self.phase is Phase.UNBORN or bool(self.operations)

    @property
    def rank(self) -> tuple[int, float, int]:
        """Smaller is served earlier and preempted later."""
        return (self.spec.priority, self.spec.order, self.arrival)

    def note_computed(self, start: int, stop: int) -> None:
        """Count the tokens of [start, stop) that were never computed before."""
        if stop > self.seen_len:
            self.num_fresh += stop - max(start, self.seen_len)
            self.seen_len = stop

    @property
    def num_reusable(self) -> int:
        """How many of the tokens may count as computed after a cut: where every token is to be scored, the row before
        the next one is computed again.
        """
        return max(0, len(self.tokens) - 1) if self.wants_scores else len(self.tokens)

    def inherit(self, parent: ContextState, at: int) -> None:
        """Become the first `at` tokens of another context, and what is known of them."""
        self.tokens = parent.tokens[:at]
        self.seen_len = min(parent.seen_len, at)
        self.is_scored = parent.is_scored
        if self.wants_scores:
            self.prompt_logprobs = {p: entry for p, entry in parent.prompt_logprobs.items() if p < at}

    def cut(self, length: int) -> None:
        """Forget what is known of the tokens from `length` on."""
        del self.tokens[length:]
        self.seen_len = min(self.seen_len, length)
        for position in [position for position in self.prompt_logprobs if position >= length]:
            del self.prompt_logprobs[position]

    def move(self, phase: Phase) -> None:
        assert phase in MOVES[self.phase], f"a context cannot go from {self.phase} to {phase}"
        self.phase = phase

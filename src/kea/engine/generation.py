"""The state of one generation: from its command to its last chunk. Knows no batch and no other context."""

from __future__ import annotations

from dataclasses import dataclass, field

from kea.engine.constraints import ConstraintState
from kea.engine.sampling import Drawn, RowState, SamplingRow
from kea.engine.speculation import PromptLookup
from kea.engine.state import ContextState
from kea.engine.stopping import End, OutputTracker
from kea.types import Chunk, Finish, FinishReason, GenerateOptions, TokenLogprob, Usage


@dataclass(slots=True, eq=False)
class GenerationState:
    """What one generation remembers. Lives from its command until its last chunk.

    Times come from the engine's clock, in seconds.
    """

    generation_id: int
    options: GenerateOptions
    sampling: RowState
    tracker: OutputTracker
    constraint: ConstraintState | None
    prompt_len: int
    created_s: float
    num_preemptions: int = 0
    admitted_s: float | None = None  # when the first step began that computes something of it
    first_token_s: float | None = None
    cached_tokens: int | None = None  # known with the first token
    lookup: PromptLookup | None = None
    _plain_row: SamplingRow = field(init=False)
    _row_ahead: SamplingRow = field(init=False)

    def __post_init__(self) -> None:
        self._plain_row = SamplingRow(self.sampling, logprobs=self.options.logprobs)
        self._row_ahead = SamplingRow(self.sampling, logprobs=self.options.logprobs, num_ahead=1)

    def row(self, num_ahead: int = 0) -> SamplingRow:
        """What the next token is drawn with; with `num_ahead` 1 the one behind it, of a generation drawn plainly."""
        if num_ahead:
            assert num_ahead == 1, "at most one token is drawn that was not taken yet"
            return self._row_ahead
        banned = self.tracker.banned
        if self.constraint is None and not banned:
            return self._plain_row
        mask = self.constraint.fill_mask() if self.constraint is not None else None
        return SamplingRow(self.sampling, mask, banned, self.options.logprobs)

    @property
    def is_drawn_plainly(self) -> bool:
        """Whether the next tokens are drawn from the logits as they are, and nothing is reported of them: so that a
        model can draw several by itself, where none is guessed.
        """
        return (
            self.constraint is None
            and self.options.logprobs is None
            and self.sampling.is_plain
            and not self.tracker.banned
        )

    @property
    def is_independent(self) -> bool:
        """Whether what a next step computes depends on no token before it but through the model."""
        return self.lookup is None and self.is_drawn_plainly

    def guess(self, context: ContextState) -> list[int]:
        """Return what the next tokens may be, within the output's length and its constraint; none without `lookup`."""
        if self.lookup is None:
            return []
        guesses = self.lookup.guess(context.tokens)[: self.tracker.num_left - 1]
        if guesses and self.constraint is not None:
            return guesses[: self.constraint.count_allowed(guesses)]
        return guesses

    def take(self, context: ContextState, drawn: Drawn, now: float) -> Chunk:
        """Add a drawn token to the context and return the chunk to emit; at the end the context keeps what is
        before it.
        """
        if self.first_token_s is None:
            self.first_token_s = now
            self.cached_tokens = self._count_cached(context)
        context.tokens.append(drawn.token_id)
        is_complete = self.constraint is not None and _advance(self.constraint, drawn.token_id)
        text, end = self.tracker.push(drawn.token_id, is_complete=is_complete)
        return Chunk(
            (drawn.token_id,),
            text,
            logprobs=(drawn.logprob,) if drawn.logprob is not None else (),
            prompt_logprobs=_take_prompt_logprobs(context) if context.wants_scores else None,
            finish=self._finish(context, end, now) if end is not None else None,
        )

    def cancel(self, context: ContextState, now: float) -> Chunk:
        """Return the last chunk of a generation that somebody ended; the context keeps every token."""
        progress = self.tracker.finish(FinishReason.CANCELLED)
        assert progress.end is not None
        return Chunk(text=progress.text, finish=self._finish(context, progress.end, now))

    def _finish(self, context: ContextState, end: End, now: float) -> Finish:
        context_len = self.prompt_len + end.num_kept
        usage = self._usage(context, now)
        context.cut(context_len)
        context.num_fresh = 0
        return Finish(end.reason, usage, context_len, end.residual, end.stop)

    def _count_cached(self, context: ContextState) -> int:
        """Return how much of the prompt was there without being computed for this generation: never its last token."""
        return max(0, min(self.prompt_len - 1, context.pages.num_computed - context.num_fresh))

    def _usage(self, context: ContextState, now: float) -> Usage:
        admitted = self.admitted_s if self.admitted_s is not None else now
        first = self.first_token_s if self.first_token_s is not None else now
        return Usage(
            prompt_tokens=self.prompt_len,
            cached_tokens=self._count_cached(context) if self.cached_tokens is None else self.cached_tokens,
            output_tokens=self.tracker.num_tokens,
            waiting_s=admitted - self.created_s,
            prefill_s=first - admitted,
            decode_s=now - first,
            num_preemptions=self.num_preemptions,
        )


def _advance(constraint: ConstraintState, token_id: int) -> bool:
    """Tell a constraint what was drawn; return whether nothing may follow."""
    constraint.accept(token_id)
    return constraint.is_stopped


def _take_prompt_logprobs(context: ContextState) -> tuple[TokenLogprob | None, ...]:
    """Return the prompt's log-probabilities, once: an entry per token; the first one and those behind a dropped token
    have none.
    """
    assert context.generation is not None
    context.is_scored = True
    entries = context.prompt_logprobs
    context.prompt_logprobs = {}
    return (None, *(entries.get(position) for position in range(1, context.generation.prompt_len)))

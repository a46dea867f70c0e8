"""Which guesses of next tokens are verified: as many as are predicted to be worth their rows, while any pay at all.

Guesses cost more than rows: a step with them is planned and drawn anew, where contexts that only decode go on as a
batch (`kea.engine.standing`), several tokens at a time. So what counts is measured: the time of a token with guesses
and without. Reads no clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from kea.engine.base import StepShape
from kea.engine.draft import Draft, WorkItem, shape_of
from kea.engine.latency import LatencyModel
from kea.memory import KVMemory

PROBE_STEPS = 32  # one of so many in which no guess is worth its row
STRETCH = 16
"""So many tokens of each context are drawn without guesses before it is asked again whether these pay."""
_FIRST_STEPS, _TRIED_STEPS = (
    (4, 16),
    (4, 8),
)  # without and with guesses: before the other way was seen; of the slower one
_KEPT_STEPS = 128  # of the faster one, before the other is tried again
_MEMORY = 0.9


class Guesser:
    """Puts guesses into the steps of contexts that speculate. Lives as long as the batcher."""

    def __init__(self, memory: KVMemory, latency: LatencyModel) -> None:
        self._memory = memory
        self._latency = latency
        self._payoff = Payoff()
        self._num_declined = PROBE_STEPS  # steps in which no guess was verified
        self._is_guessing = False

    def plan(self, draft: Draft, num_running: int) -> bool:
        """Let the decoding contexts that speculate verify guesses too, as many as pay and as there is memory for.
        Return whether contexts may go on for a `STRETCH` without being asked again.
        """
        guessing = [i for i in draft.items.values() if i.context.generation and i.context.generation.lookup is not None]
        self._is_guessing = bool(guessing) and self._payoff.pays(draft.num_decodes)
        if not self._is_guessing:
            return bool(guessing)
        shape = shape_of(draft.items.values())
        probes = self._num_declined >= PROBE_STEPS
        worth = GuessBudget(self._latency, shape, draft.num_decodes, draft.objective_s, probes=probes)
        self._num_declined += 1
        for item in guessing:
            self._put(item, draft, worth, num_running)
        return False

    def observe(self, num_contexts: int, num_tokens: int, seconds: float) -> None:
        """Learn from a step as it was last planned, in which so many contexts did nothing but decode."""
        self._payoff.observe(num_contexts, num_tokens, seconds, is_guessing=self._is_guessing)

    def _put(self, item: WorkItem, draft: Draft, worth: GuessBudget, num_running: int) -> None:
        generation, pages = item.context.generation, item.context.pages
        assert generation is not None
        assert generation.lookup is not None
        guesses = generation.guess(item.context)
        most = min(draft.budget, self._memory.chunk_stop(pages, item.stop + len(guesses)) - item.stop)
        num_taken = worth.take(generation.lookup.hit_ratio, item.stop, min(most, len(guesses)))
        is_spare = self._memory.num_available >= num_running  # the next pages are for tokens that are sure
        if num_taken > 0 and is_spare and self._memory.try_reserve(pages, item.stop + num_taken):
            draft.put(replace(item, guesses=tuple(guesses[:num_taken])))
            self._num_declined = 0


@dataclass(slots=True)
class _Way:
    """What one of two ways to go on took lately: seconds, and tokens of each context."""

    seconds: float = 0.0
    num_tokens: float = 0.0

    @property
    def token_s(self) -> float:
        return self.seconds / self.num_tokens

    def observe(self, seconds: float, num_tokens: float) -> None:
        self.seconds = _MEMORY * self.seconds + seconds
        self.num_tokens = _MEMORY * self.num_tokens + num_tokens


@dataclass(slots=True)
class _Choice:
    """For batches of one size: the two ways, without guesses and with them, which it is now, and for how many steps."""

    ways: tuple[_Way, _Way] = field(default_factory=lambda: (_Way(), _Way()))
    is_guessing: bool = True
    num_steps: int = 0

    @property
    def most_steps(self) -> int:
        """After how many steps the other way is to be tried."""
        now, other = self.ways[self.is_guessing], self.ways[not self.is_guessing]
        if now.num_tokens == 0.0 or other.num_tokens == 0.0:
            return _FIRST_STEPS[self.is_guessing]
        return _KEPT_STEPS if now.token_s <= other.token_s else _TRIED_STEPS[self.is_guessing]


class Payoff:
    """Whether steps with guesses give tokens sooner than steps without, as measured, by the size of the batch.

    Each way is tried in the beginning, and the slower one again from time to time.
    """

    def __init__(self) -> None:
        self._choices: dict[int, _Choice] = {}  # by the bits of the number of contexts

    def pays(self, num_contexts: int) -> bool:
        """Whether the next step of so many contexts is to have guesses."""
        choice = self._choices.setdefault(num_contexts.bit_length(), _Choice())
        if choice.num_steps >= choice.most_steps:
            choice.is_guessing, choice.num_steps = not choice.is_guessing, 0
        return choice.is_guessing

    def observe(self, num_contexts: int, num_tokens: int, seconds: float, *, is_guessing: bool) -> None:
        """Learn from a step of so many contexts that decoded `num_tokens` tokens in all."""
        if seconds <= 0.0 or num_tokens == 0:
            return
        choice = self._choices.setdefault(num_contexts.bit_length(), _Choice())
        choice.ways[is_guessing].observe(seconds, num_tokens / num_contexts)
        if is_guessing == choice.is_guessing:
            choice.num_steps += 1 if is_guessing else num_tokens // num_contexts  # of a burst, each round


class GuessBudget:
    """Which guesses of a step are worth their rows: each that lets the step give more tokens per second.

    `num_draws` tokens are drawn in any case; `limit_s` bounds what the step may take. Before the latency model knows
    anything, all are, and in a step that `probes`: a model that has seen no step with guesses takes a row's cost for
    more than it is (of one sequence alone, nothing tells it from the weights'). Lives for one plan.
    """

    def __init__(
        self, latency: LatencyModel, shape: StepShape, num_draws: int, limit_s: float | None, *, probes: bool = False
    ) -> None:
        self._latency = latency
        self._step_s = latency.predict(shape)
        self._num_tokens = float(num_draws)
        self._limit_s = limit_s
        self._probes = probes

    def take(self, hit_ratio: float, context_len: int, most: int) -> int:
        """Return how many guesses, at most `most`, a context of so many tokens may have verified, and count them in."""
        cost_s = self._latency.sequence_s(context_len)
        gain = 1.0
        for num_taken in range(most):
            gain *= hit_ratio
            is_late = self._limit_s is not None and self._step_s + cost_s > self._limit_s
            if is_late or (gain * self._step_s < self._num_tokens * cost_s and not self._probes):
                return num_taken
            self._step_s += cost_s
            self._num_tokens += gain
        return most

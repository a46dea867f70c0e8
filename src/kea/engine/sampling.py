"""Sampling: one token for every row of a step at once. Owns the order of the processors; knows no contexts, no text.

A row's logits go through, as in vLLM: logit bias, the constraint's mask, the ban on end tokens (min_tokens), penalties
(repetition, then frequency and presence); then the best token is taken (temperature 0), or temperature, min_p, top_k
and top_p apply and one is drawn. Log-probabilities are of the logits before all of that. Equal tokens: the lowest id.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from kea.engine.choices import Choice, KnownChoice, choose_ahead
from kea.engine.constraints import apply_masks
from kea.engine.drawing import Noise
from kea.engine.drawing_cpu import ONE_THREAD_NUMEL, CpuDraws, draw_noise, draw_settings
from kea.engine.logprobs import token_logprobs
from kea.engine.penalties import RowState, add_bias, apply_penalties, ban_tokens
from kea.engine.transfer import send_index
from kea.errors import EngineFault, InvalidRequest, KeaError
from kea.models.base import DrawOrder
from kea.types import Sampling, TokenLogprob

__all__ = ["Drawn", "Draws", "RowState", "Sampler", "SamplingRow", "create_order", "record", "token_logprobs"]


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """What one row of logits is drawn with. `state` belongs to the generation; the rest to this draw.

    `mask`: the constraint's bits [ceil(V / 32)] int32 on the CPU. `banned`: ids that may not end the output yet.
    `logprobs`: alternatives to report (0: the drawn token alone; None: nothing). `num_ahead`: how many tokens before
    this one are drawn and not recorded yet.
    """

    state: RowState
    mask: torch.Tensor | None = None
    banned: Sequence[int] = ()
    logprobs: int | None = None
    num_ahead: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether the logits are used as they are."""
        return self.mask is None and not self.banned and self.state.is_plain


class Drawn(NamedTuple):
    """A drawn token, and its log-probability if it was asked for."""

    token_id: int
    logprob: TokenLogprob | None = None


class Sampler:
    """Draws tokens for batches. Holds no state of rows: it lives as long as its engine, they as long as generations.

    `entropy` gives the seed of a generation that names none (an integer of at least 64 random bits).
    """

    def __init__(self, vocab_size: int, entropy: Callable[[], int]) -> None:
        self._vocab_size = vocab_size
        self._entropy = entropy
        self._cpu = CpuDraws()

    def create_state(self, sampling: Sampling, prompt_ids: Sequence[int]) -> RowState:
        """Return the state of a generation that follows these tokens; `InvalidRequest` as `RowState` raises it."""
        seed = self._entropy() if sampling.seed is None else sampling.seed
        return RowState(sampling, seed, self._vocab_size, prompt_ids)

    def warm_up(self) -> None:
        """Draw a few tokens for nobody on the CPU, so that the kernels are compiled and loaded."""
        for width in (256, ONE_THREAD_NUMEL + 1):
            states = [self.create_state(Sampling(seed=0, top_k=top_k, top_p=0.9), ()) for top_k in (0, 9)]
            self.sample(torch.zeros(1, width).expand(2, width), [SamplingRow(state) for state in states])

    def sample(
        self, logits: torch.Tensor, rows: Sequence[SamplingRow], indices: Sequence[int] | None = None
    ) -> list[Drawn | KeaError]:
        """Draw a token for each row of the logits [R, V] fp32 and record it in the row's state; the logits stay.

        With `indices`, `rows` are those rows of the logits, in order.

        A row that cannot be drawn gets an error and keeps its state: `InvalidRequest` where its constraint and bans
        leave no token, `EngineFault` where the model gave no finite logits.
        """
        return self.begin(logits, rows, indices).finish()

    def begin(self, logits: torch.Tensor, rows: Sequence[SamplingRow], indices: Sequence[int] | None = None) -> Draws:
        """Begin what `sample` does; on a device nothing is waited for. Logits of rows that are not plain, or report
        log-probabilities, must stay until it is finished.
        """
        if not rows:
            return Draws(logits, rows, KnownChoice([]))
        if indices is not None and len(indices) != len(logits):
            logits = logits.index_select(0, send_index(indices, logits.device))
        if all(row.is_plain for row in rows):
            return Draws(logits, rows, self._choose(logits, rows))
        with torch.inference_mode(), _threads_for(logits):
            return Draws(logits, rows, self._choose(_process(logits, rows), rows))

    def _choose(self, logits: torch.Tensor, rows: Sequence[SamplingRow]) -> Choice:
        if logits.device.type == "cpu":
            ahead = [row.num_ahead for row in rows] if any(row.num_ahead for row in rows) else None
            return KnownChoice(self._cpu.draw(logits, [row.state for row in rows], ahead))
        return choose_rows_ahead(logits, rows)


def choose_rows_ahead(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> Choice:
    """Choose the rows' tokens on a device that is not waited for."""
    noise = [Noise(row.state.seed, row.state.num_drawn + row.num_ahead) for row in rows]
    with torch.inference_mode():
        return choose_ahead(logits, [row.state.sampling for row in rows], noise)


class Draws:
    """A batch whose tokens are chosen and not yet recorded. Lives until `finish`."""

    def __init__(self, logits: torch.Tensor, rows: Sequence[SamplingRow], choice: Choice) -> None:
        self._logits = logits
        self._rows = rows
        self.choice = choice

    def finish(self, void: Collection[int] = ()) -> list[Drawn | KeaError]:
        """Record the tokens in the rows' states and return them, as `Sampler.sample` does. Nothing is recorded of rows
        that are void.
        """
        token_ids, reports = self.choice.read(), {}
        if any(row.logprobs is not None for row in self._rows):
            with torch.inference_mode(), _threads_for(self._logits):
                reports = _report(self._logits, self._rows, token_ids)
        drawn: list[Drawn | KeaError] = []
        for row, (spec, token_id) in enumerate(zip(self._rows, token_ids, strict=True)):
            if token_id is None:
                drawn.append(_not_finite() if spec.is_plain else _reason(self._logits[row]))
            else:
                if row not in void:
                    spec.state.push(token_id)
                drawn.append(Drawn(token_id, reports.get(row)))
        return drawn


@contextmanager
def _threads_for(logits: torch.Tensor) -> Iterator[None]:
    """Run a small batch on a CPU on one thread.

    It takes a few milliseconds either way, but two threads that wait for each other at every operation take seven times
    as long as soon as something else runs on the cores (130 ms instead of 20, at a load of 7 on 2 cores).
    """
    num_threads = torch.get_num_threads()
    if logits.device.type != "cpu" or logits.numel() > ONE_THREAD_NUMEL or num_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _process(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """Return the processed logits: a copy, or the logits themselves when no row changes them."""
    if all(row.is_plain for row in rows):
        return logits
    logits = logits.clone()
    states = [row.state for row in rows]
    add_bias(logits, states)
    apply_masks(logits, [row.mask for row in rows])
    ban_tokens(logits, [row.banned for row in rows])
    apply_penalties(logits, states)
    return logits


def _report(
    logits: torch.Tensor, rows: Sequence[SamplingRow], token_ids: Sequence[int | None]
) -> dict[int, TokenLogprob]:
    """Return the log-probabilities of the rows that ask for them, by row."""
    asked = [
        (row, token_id, spec.logprobs)
        for row, (spec, token_id) in enumerate(zip(rows, token_ids, strict=True))
        if spec.logprobs is not None and token_id is not None
    ]
    if not asked:
        return {}
    indices, chosen, num_top = zip(*asked, strict=True)
    if len(asked) < len(rows):
        logits = logits.index_select(0, send_index(indices, logits.device))
    return dict(zip(indices, token_logprobs(logits, chosen, num_top), strict=True))


def create_order(states: Sequence[RowState]) -> DrawOrder:
    """Return how a model draws the next tokens of rows that are plain: as a sampler would."""
    return DrawOrder(draw_settings(states), draw_noise(states))


def record(state: RowState, token_id: int) -> Drawn | KeaError:
    """Record in a row's state what a model has drawn for it; an error where it could not."""
    if token_id < 0:
        return _not_finite()
    state.push(token_id)
    return Drawn(token_id)


def _not_finite() -> EngineFault:
    return EngineFault("The model gave logits that are not finite numbers for this row.")


def _reason(logits: torch.Tensor) -> KeaError:
    if math.isfinite(logits.max().item()):
        return InvalidRequest(
            "No token is allowed: the constraint permits only tokens that may not end the output before min_tokens.",
            hint="Lower min_tokens, or loosen the constraint.",
            param="min_tokens",
        )
    return _not_finite()

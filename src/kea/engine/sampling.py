"""Sampling: one token for every row of a step at once. Owns the order of the processors; knows no contexts, no text.

A row's logits go through, as in vLLM: logit bias, the constraint's mask, the ban on end tokens (min_tokens), penalties
(repetition, then frequency and presence); then the best token is taken (temperature 0), or temperature, min_p, top_k
and top_p apply and one is drawn. Log-probabilities are of the logits before all of that. Equal tokens: the lowest id.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from kea.engine.constraints import apply_masks
from kea.engine.drawing import DrawRows, Noise, draw_tokens
from kea.engine.drawing_ahead import draw_ahead
from kea.engine.drawing_cpu import ONE_THREAD_NUMEL, CpuDraws, draw_noise, draw_settings
from kea.engine.logprobs import token_logprobs
from kea.engine.penalties import RowState, add_bias, apply_penalties, ban_tokens
from kea.engine.transfer import send_index
from kea.errors import EngineFault, InvalidRequest, KeaError
from kea.models.base import DrawOrder
from kea.types import Sampling, TokenLogprob

__all__ = ["Drawn", "RowState", "Sampler", "SamplingRow", "create_order", "record", "token_logprobs"]


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """What one row of logits is drawn with. `state` belongs to the generation; the rest to this draw.

    `mask`: the constraint's bits [ceil(V / 32)] int32 on the CPU. `banned`: ids that may not end the output yet.
    `logprobs`: alternatives to report (0: the drawn token alone; None: nothing).
    """

    state: RowState
    mask: torch.Tensor | None = None
    banned: Sequence[int] = ()
    logprobs: int | None = None

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
        if not rows:
            return []
        if indices is not None and len(indices) != len(logits):
            logits = logits.index_select(0, torch.tensor(indices, device=logits.device))
        if all(row.logprobs is None and row.is_plain for row in rows):
            token_ids, reports = self._choose(logits, rows), {}
        else:
            with torch.inference_mode(), _threads_for(logits):
                token_ids = self._choose(_process(logits, rows), rows)
                reports = _report(logits, rows, token_ids)
        drawn: list[Drawn | KeaError] = []
        for row, (spec, token_id) in enumerate(zip(rows, token_ids, strict=True)):
            if token_id is None:
                drawn.append(_reason(logits[row]))
            else:
                spec.state.push(token_id)
                drawn.append(Drawn(token_id, reports.get(row)))
        return drawn

    def _choose(self, logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int | None]:
        """Return each row's token id; None where no logit is finite or one is not a number."""
        if logits.device.type == "cpu":
            return self._cpu.draw(logits, [row.state for row in rows])
        with torch.inference_mode():
            return choose_ahead(logits, rows)


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


def choose_ahead(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int | None]:
    """Choose the tokens on a device that is not waited for: one transfer, and one more for rows that were not settled
    in the first go.
    """
    best, best_ids = logits.max(dim=-1)  # the first of equal ones
    random = [row for row, spec in enumerate(rows) if not spec.state.sampling.is_greedy]
    token_ids, is_settled = best_ids.clone(), torch.ones_like(best_ids)
    draws = _draw_rows(logits, best, rows)
    if random:
        index = send_index(random, logits.device)
        own_ids, own_settled = draw_ahead(draws.take(random))
        token_ids[index], is_settled[index] = own_ids, own_settled.long()
    chosen, sound, settled = torch.stack([token_ids, best.isfinite().long(), is_settled]).tolist()
    late = [row for row in random if sound[row] and not settled[row]]
    if late:
        for row, token_id in zip(late, draw_tokens(draws.take(late)), strict=True):
            chosen[row] = token_id
    return [token_id if is_sound else None for token_id, is_sound in zip(chosen, sound, strict=True)]


def _draw_rows(logits: torch.Tensor, best: torch.Tensor, rows: Sequence[SamplingRow]) -> DrawRows:
    states = [row.state for row in rows]
    noise = [Noise(state.seed, state.num_drawn) for state in states]
    return DrawRows(logits, best, [state.sampling for state in states], noise)


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


def create_order(states: Sequence[RowState], num_rounds: int) -> DrawOrder:
    """Return how a model draws the next tokens of rows that are plain, so many of each: as a sampler would."""
    return DrawOrder(num_rounds, draw_settings(states), draw_noise(states))


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

"""What one generation remembers for its draws, and the penalties computed from it.

Owns the per-generation sampling state (seed, number of draws, tokens seen) and the sparse edits of logits: biases, bans
and penalties. Knows no batch, no distributions. A drawn token costs O(1) here, whatever the context's length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from kea.engine.transfer import send
from kea.errors import InvalidRequest
from kea.types import Sampling

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MIN_CAPACITY = 32


class TokenCounts:
    """The distinct tokens of one generation and how often each was output. As large as the vocabulary seen."""

    def __init__(self, prompt_ids: Sequence[int] = ()) -> None:
        distinct = np.unique(np.asarray(prompt_ids, dtype=np.int64))
        self._len = len(distinct)
        capacity = max(_MIN_CAPACITY, 2 * self._len)
        self._ids = np.zeros(capacity, dtype=np.int64)
        self._ids[: self._len] = distinct
        self._counts = np.zeros(capacity, dtype=np.float32)
        self._slots = {token_id: slot for slot, token_id in enumerate(distinct.tolist())}

    @property
    def ids(self) -> NDArray[np.int64]:
        """The distinct token ids [n], in the order in which they were first seen (the prompt's first)."""
        return self._ids[: self._len]

    @property
    def output_counts(self) -> NDArray[np.float32]:
        """How often each of `ids` was output [n]; 0 for tokens of the prompt alone."""
        return self._counts[: self._len]

    def push(self, token_id: int) -> None:
        """Count one more token of the output."""
        slot = self._slots.get(token_id)
        if slot is None:
            slot = self._slots[token_id] = self._len
            self._reserve(self._len + 1)
            self._ids[slot] = token_id
            self._len += 1
        self._counts[slot] += 1

    def _reserve(self, size: int) -> None:
        if size > len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])


class RowState:
    """The sampling state of one generation: made when it begins, advanced by every draw, dropped with it.

    `seed` and `num_drawn` determine the randomness of the next draw, nothing else does.
    """

    __slots__ = ("bias", "bias_ids", "counts", "is_plain", "num_drawn", "sampling", "seed")

    def __init__(self, sampling: Sampling, seed: int, vocab_size: int, prompt_ids: Sequence[int] = ()) -> None:
        """Raise `InvalidRequest` where the sampling names a token that the vocabulary lacks."""
        check_token_ids("logit_bias", tuple(sampling.logit_bias), vocab_size)
        self.sampling = sampling
        self.seed = seed
        self.num_drawn = 0
        self.bias_ids = np.fromiter(sampling.logit_bias.keys(), dtype=np.int64)
        self.bias = np.fromiter(sampling.logit_bias.values(), dtype=np.float32)
        self.counts = _create_counts(sampling, prompt_ids)
        self.is_plain = self.counts is None and not len(self.bias_ids)  # no edit of the logits is ever due

    def push(self, token_id: int) -> None:
        """Record that the generation drew this token."""
        self.num_drawn += 1
        if self.counts is not None:
            self.counts.push(token_id)

    def note_drawn(self, num_tokens: int) -> None:
        """Record that the generation drew so many tokens, whose counts change nothing."""
        assert self.counts is None, "tokens that penalties depend on were not told"
        self.num_drawn += num_tokens


def check_token_ids(name: str, token_ids: Sequence[int], vocab_size: int) -> None:
    """Raise `InvalidRequest` for an id outside [0, vocab_size); `name` is the parameter that holds it."""
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"{name} names the token {token_id}; the vocabulary has ids 0 to {vocab_size - 1}.", param=name
            )


def _create_counts(sampling: Sampling, prompt_ids: Sequence[int]) -> TokenCounts | None:
    if sampling.repetition_penalty != 1.0:
        return TokenCounts(prompt_ids)
    if sampling.presence_penalty or sampling.frequency_penalty:
        return TokenCounts()
    return None


def add_bias(logits: torch.Tensor, states: Sequence[RowState | None]) -> None:
    """Add each row's logit bias to its logits [R, V], in place."""
    rows = [row for row, state in enumerate(states) if state is not None and len(state.bias_ids)]
    chosen = [state for row in rows if (state := states[row]) is not None]
    if not rows:
        return
    where = _flat_index(logits, rows, [state.bias_ids for state in chosen])
    flat = logits.view(-1)
    flat[where] += send(np.concatenate([state.bias for state in chosen]), logits.device)


def ban_tokens(logits: torch.Tensor, banned: Sequence[Sequence[int]]) -> None:
    """Set the logits [R, V] of each row's banned token ids to minus infinity, in place. Ids outside V are ignored."""
    rows = [row for row, ids in enumerate(banned) if len(ids)]
    if rows:
        ids = [np.asarray(banned[row], dtype=np.int64) for row in rows]
        inside = [row_ids[(row_ids >= 0) & (row_ids < logits.shape[-1])] for row_ids in ids]
        logits.view(-1)[_flat_index(logits, rows, inside)] = -torch.inf


def apply_penalties(logits: torch.Tensor, states: Sequence[RowState]) -> None:
    """Apply repetition, then frequency and presence penalties to the logits [R, V], in place.

    Repetition (over prompt and output): a positive logit is divided, a negative one multiplied (CTRL, arXiv 1909.05858,
    section 4.1, as transformers and vLLM do). Frequency and presence (over the output alone): OpenAI's definition.
    """
    rows = [row for row, state in enumerate(states) if state.counts is not None and len(state.counts.ids)]
    if not rows:
        return
    counts = [counts for row in rows if (counts := states[row].counts) is not None]
    lengths = np.array([len(count.ids) for count in counts])
    where = _flat_index(logits, rows, [count.ids for count in counts])
    per_row = np.array([_penalties(states[row].sampling) for row in rows], dtype=np.float32)
    repetition, frequency, presence = np.repeat(per_row, lengths, axis=0).T
    num_output = np.concatenate([count.output_counts for count in counts])
    subtracted = frequency * num_output + presence * (num_output > 0)
    flat = logits.view(-1)
    values = flat[where]
    factor = send(repetition.copy(), logits.device)
    values = torch.where(values > 0, values / factor, values * factor)
    flat[where] = values - send(subtracted, logits.device)


def _penalties(sampling: Sampling) -> tuple[float, float, float]:
    return sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty


def _flat_index(logits: torch.Tensor, rows: Sequence[int], ids: Sequence[NDArray[np.int64]]) -> torch.Tensor:
    """Return the positions of each row's ids in the flattened logits."""
    width = logits.shape[-1]
    where = np.concatenate([row_ids + row * width for row, row_ids in zip(rows, ids, strict=True)])
    return send(where, logits.device)

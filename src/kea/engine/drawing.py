"""Draws one token per row from scaled, truncated distributions. Owns the randomness; knows no requests.

A draw takes uniform numbers that are a pure function of (seed, index of the draw, attempt) through the inverse of the
cumulative distribution *in the order of the token ids*. Nothing depends on the other rows. In id order, rather than by
probability, two nearly equal logits that swap places under rounding do not change what is drawn.

Truncation is exact and ties go to the lowest ids, but no vocabulary is sorted unless it must be:
- top_k (and top_p within it) looks at the best 64 tokens, or 1,024: enough if the last kept beats the last taken.
- top_p alone rejects: a token is drawn from all; if the tokens before it in rank hold less than top_p it is one of the
  nucleus and is kept, else it and all after it lose their weight and another is drawn. Accepted tokens have exactly the
  nucleus' distribution (FlashInfer's sampling, 2025). A rejection halves what is left outside, on average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kea.engine.transfer import send, send_index
from kea.types import Sampling

WIDTHS = (64, 1024)
_BLOCK = 128
_BELOW_ONE = 1.0 - 2.0**-53
MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Noise:
    """The randomness of one draw: the generation's seed and the index of the draw within it."""

    seed: int
    index: int

    @property
    def key(self) -> int:
        """64 bits that stand for the draw: SplitMix64 (Steele et al., OOPSLA 2014) of the seed, then of the index."""
        state = _mix((self.seed & MASK) ^ _GOLDEN)
        return _mix((state + (self.index + 1) * _GOLDEN) & MASK)

    def uniform(self, attempt: int) -> float:
        """Return a number in [0, 1): 53 bits of the key, or of what follows it."""
        state = self.key
        if attempt:
            state = _mix((state + attempt * _GOLDEN) & MASK)
        return (state >> 11) * 2.0**-53


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


@dataclass(frozen=True, slots=True)
class DrawRows:
    """Rows to draw from: logits [R, V] fp32 and their finite maxima `best` [R], each row's sampling and noise."""

    logits: torch.Tensor
    best: torch.Tensor
    samplings: Sequence[Sampling]
    noise: Sequence[Noise]

    def take(self, rows: Sequence[int]) -> DrawRows:
        if len(rows) == len(self.samplings):
            return self
        index = send_index(rows, self.logits.device)
        return DrawRows(
            self.logits.index_select(0, index),
            self.best.index_select(0, index),
            [self.samplings[row] for row in rows],
            [self.noise[row] for row in rows],
        )

    def scale(self, logits: torch.Tensor) -> torch.Tensor:
        """Return z = (logit - best) / temperature <= 0, in the shape of `logits` [R, n]."""
        temperature = [max(sampling.temperature, TINY) for sampling in self.samplings]
        return logits.sub(self.best[:, None]).div_(self.column(temperature, torch.float32))

    def weigh(self, z: torch.Tensor) -> torch.Tensor:
        """Return exp(z), 0 where min_p cuts it off, in the shape of `z` [R, n]."""
        weights = z.exp()
        floor = [math.log(s.min_p) if s.min_p > 0.0 else -math.inf for s in self.samplings]
        if max(floor) > -math.inf:
            weights.mul_(torch.ge(z, self.column(floor, torch.float32), out=torch.empty_like(z)))
        return weights

    def column(self, values: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
        """Return one value per row [R, 1]."""
        return send(torch.tensor(values, dtype=dtype), self.logits.device)[:, None]

    def uniform(self, attempt: int = 0) -> torch.Tensor:
        """Return each row's uniform number [R, 1] fp64."""
        return self.column([noise.uniform(attempt) for noise in self.noise], torch.float64)


def draw_tokens(rows: DrawRows) -> list[int]:
    """Draw each row's token: temperature, then min_p, top_k and top_p, each over what the one before it left."""
    width = rows.logits.shape[-1]
    drawn = [0] * len(rows.samplings)
    kinds = [
        _draw_top_k if 0 < s.top_k < width else _draw_top_p if s.top_p < 1.0 else _draw_any for s in rows.samplings
    ]
    for draw in (_draw_any, _draw_top_p, _draw_top_k):
        chosen = [row for row, kind in enumerate(kinds) if kind is draw]
        if chosen:
            _store(drawn, chosen, draw(rows.take(chosen)))
    return drawn


def _store(drawn: list[int], rows: Sequence[int], token_ids: Sequence[int]) -> None:
    for row, token_id in zip(rows, token_ids, strict=True):
        drawn[row] = token_id


def invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return the columns [R, 1] where the cumulative weights [R, n] first exceed `uniform` [R, 1] of their sum.

    First the block of columns, then the column in it: a running sum over all columns in fp64 costs ten times as much. A
    column of weight 0 is never returned: a number below 1 times a sum is below the sum. Where the weights are not
    numbers, some column is.
    """
    sums = block_sums(weights).cumsum(-1)
    target = uniform * sums[:, -1:]
    block = torch.searchsorted(sums, target, right=True).clamp_(max=sums.shape[-1] - 1)
    end = sums.gather(-1, block)
    start = torch.where(block > 0, sums.gather(-1, (block - 1).clamp_(min=0)), 0.0)
    share = ((target - start) / (end - start)).clamp_(max=_BELOW_ONE)
    columns = block * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    last = weights.shape[-1] - 1
    inner = weights.gather(-1, columns.clamp(max=last)).double().mul_(columns <= last).cumsum(-1)
    return (block * _BLOCK + torch.searchsorted(inner, share * inner[:, -1:], right=True)).clamp_(max=last)


def block_sums(weights: torch.Tensor) -> torch.Tensor:
    """Return the sums of each row's blocks of columns fp64, the same whatever the number of rows."""
    num_full = weights.shape[-1] // _BLOCK
    full = weights[:, : num_full * _BLOCK].reshape(len(weights), num_full, _BLOCK).sum(-1)
    tail = weights[:, num_full * _BLOCK :].sum(-1, keepdim=True)
    return torch.cat([full, tail], dim=-1).double()


def _draw_any(rows: DrawRows) -> list[int]:
    column = invert(rows.weigh(rows.scale(rows.logits)), rows.uniform())
    return column.squeeze(-1).tolist()


def _draw_top_p(rows: DrawRows) -> list[int]:
    weights = rows.weigh(rows.scale(rows.logits))
    column = invert(weights, rows.uniform())
    limit = rows.column([s.top_p for s in rows.samplings], torch.float64) * block_sums(weights).sum(-1, keepdim=True)
    is_as_good = torch.ge(rows.logits, rows.logits.gather(-1, column), out=torch.empty_like(weights))
    up_to = block_sums(is_as_good.mul_(weights)).sum(-1, keepdim=True)
    is_sure = (up_to - weights.gather(-1, column) < limit).squeeze(-1).tolist()
    drawn: list[int] = column.squeeze(-1).tolist()
    for row, sure in enumerate(is_sure):
        if not sure:
            drawn[row] = _draw_nucleus(rows.logits[row], weights[row], float(limit[row]), rows.noise[row])
    return drawn


def _draw_nucleus(logits: torch.Tensor, weights: torch.Tensor, limit: float, noise: Noise) -> int:
    """Draw from one row's nucleus [V]: the tokens whose betters in rank weigh less than `limit` together."""
    attempt = 0
    while True:
        uniform = torch.tensor([[noise.uniform(attempt)]], dtype=torch.float64, device=logits.device)
        token = int(invert(weights[None], uniform))
        is_before = logits > logits[token]
        is_before[:token] |= logits[:token] == logits[token]
        left = weights * is_before
        if float(block_sums(left[None]).sum()) < limit:
            return token
        weights = left
        attempt += 1


def _draw_top_k(rows: DrawRows) -> list[int]:
    width = rows.logits.shape[-1]
    drawn = [0] * len(rows.samplings)
    pending = list(range(len(rows.samplings)))
    for num_best in (*(w for w in WIDTHS if w < width), width):
        tried = [row for row in pending if rows.samplings[row].top_k < num_best]
        if tried:
            token_ids, is_settled = draw_among(rows.take(tried), num_best)
            _store(drawn, tried, token_ids.tolist())
            settled = {row for row, flag in zip(tried, is_settled.tolist(), strict=True) if flag}
            pending = [row for row in pending if row not in settled]
    return drawn


def draw_among(rows: DrawRows, num_best: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from the best `num_best` tokens [R]; also tell for which rows they surely hold all that top_k and top_p keep
    [R].
    """
    if num_best == rows.logits.shape[-1]:
        ids, values, ranked = None, rows.logits, _sorted(rows.logits)
    else:
        ranked, ids = rows.logits.topk(num_best, dim=-1)
        ids, order = ids.sort(dim=-1)
        values = ranked.gather(-1, order)
    num_kept = _num_kept(rows, ranked)
    last = ranked.gather(-1, num_kept - 1)
    is_tie = values == last
    num_better = (ranked > last).sum(-1, keepdim=True)
    is_kept = (values > last) | (is_tie & (is_tie.cumsum(-1) <= num_kept - num_better))
    column = invert(rows.weigh(rows.scale(values)).mul_(is_kept), rows.uniform())
    if ids is None:
        return column.squeeze(-1), torch.ones_like(column, dtype=torch.bool).squeeze(-1)
    return ids.gather(-1, column).squeeze(-1), (last > ranked[:, -1:]).squeeze(-1)


def _num_kept(rows: DrawRows, ranked: torch.Tensor) -> torch.Tensor:
    """Return how many of the logits [R, K], best first, min_p, top_k and top_p keep (at least 1) [R, 1]."""
    weights = rows.weigh(rows.scale(ranked)).double()
    rank = torch.arange(ranked.shape[-1], device=ranked.device)
    weights.mul_(rank < rows.column([s.top_k for s in rows.samplings], torch.int64))
    cumulative = weights.cumsum(-1)
    limit = rows.column([s.top_p for s in rows.samplings], torch.float64) * cumulative[:, -1:]
    return ((weights > 0) & (cumulative - weights < limit)).sum(-1, keepdim=True).clamp_(min=1)


def _sorted(values: torch.Tensor) -> torch.Tensor:
    """Return each row's values, best first. On a CPU, NumPy's vectorised sort is ten times as fast as torch's."""
    if values.device.type != "cpu":
        return values.sort(dim=-1, descending=True).values
    return torch.from_numpy(np.sort(values.numpy(), axis=-1)[:, ::-1].copy())

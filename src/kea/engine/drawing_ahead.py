"""Draws of a whole batch on a device that the host does not wait for: no decision about one row is read back.

Gives the tokens of `drawing`, whose laws and randomness it uses. What `drawing` would go on with after looking at a
result is done for every row a fixed number of times; a row that is not settled by then says so. Knows no requests.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from kea.engine.drawing import WIDTHS, DrawRows, block_sums, draw_among, invert
from kea.engine.transfer import send_index

NUM_ROUNDS = 4  # of rejection, after the first draw; each halves what is left outside on average
MIN_LATE_ROWS = 8
LATE_SHARE = 4  # one row in so many goes through the rounds

Draw = Callable[[DrawRows], tuple[torch.Tensor, torch.Tensor]]


def draw_ahead(rows: DrawRows) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's token [R] int64 and whether it is settled [R]; one that is not must be drawn by `draw_tokens`.

    Rows without a finite maximum get a token of no meaning.
    """
    groups = _groups(rows)
    if len(groups) == 1:
        return groups[0][0](rows)
    device = rows.logits.device
    token_ids = torch.zeros(len(rows.samplings), dtype=torch.int64, device=device)
    is_settled = torch.ones(len(rows.samplings), dtype=torch.bool, device=device)
    for draw, chosen in groups:
        index = send_index(chosen, device)
        token_ids[index], is_settled[index] = draw(rows.take(chosen))
    return token_ids, is_settled


def _groups(rows: DrawRows) -> list[tuple[Draw, list[int]]]:
    """Return which rows are drawn in which way: those with top_k among as many of the best as hold it."""
    width = rows.logits.shape[-1]
    chosen: dict[int, list[int]] = {}
    for row, sampling in enumerate(rows.samplings):
        if 0 < sampling.top_k < width:
            kind = next((best for best in WIDTHS if sampling.top_k < best < width), width)
        else:
            kind = -1 if sampling.top_p < 1.0 else 0
        chosen.setdefault(kind, []).append(row)
    return [(_draw_of(kind), indices) for kind, indices in chosen.items()]


def _draw_of(kind: int) -> Draw:
    if kind > 0:
        return lambda rows: draw_among(rows, kind)
    return _draw_any if kind == 0 else _draw_top_p


def _draw_any(rows: DrawRows) -> tuple[torch.Tensor, torch.Tensor]:
    column = invert(rows.weigh(rows.scale(rows.logits)), rows.uniform()).squeeze(-1)
    return column, torch.ones_like(column, dtype=torch.bool)


def _draw_top_p(rows: DrawRows) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from the nuclei by rejection: all rows once, then those rejected, as far as there is room for them."""
    num_rows = len(rows.samplings)
    weights = rows.weigh(rows.scale(rows.logits))
    limit = rows.column([s.top_p for s in rows.samplings], torch.float64) * block_sums(weights).sum(-1, keepdim=True)
    token = invert(weights, rows.uniform())
    left = weights * _is_before(rows.logits, token)
    is_settled = block_sums(left).sum(-1, keepdim=True) < limit
    late = is_settled.squeeze(-1).int().argsort(stable=True)[: max(MIN_LATE_ROWS, num_rows // LATE_SHARE)]
    uniform = torch.cat([rows.uniform(attempt + 1) for attempt in range(NUM_ROUNDS)], dim=-1)[late]
    logits, left, limit = rows.logits[late], left[late], limit[late]
    own_token, is_done = token[late], is_settled[late]
    for attempt in range(NUM_ROUNDS):
        again = invert(left, uniform[:, attempt : attempt + 1])
        rest = left * _is_before(logits, again)
        own_token = torch.where(is_done, own_token, again)
        is_done = is_done | (block_sums(rest).sum(-1, keepdim=True) < limit)
        left = rest
    token[late], is_settled[late] = own_token, is_done
    return token.squeeze(-1), is_settled.squeeze(-1)


def _is_before(logits: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """Say of every token of the logits [R, V] whether it ranks before the row's `token` [R, 1]; ties by id."""
    own = logits.gather(-1, token)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    return (logits > own) | ((logits == own) & (ids < token))

"""Log-probabilities as they are reported: of the model's own logits, before any processor. Knows no requests."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kea.engine.transfer import send_index
from kea.types import TokenLogprob

_MIN_WIDTH = 16  # most tokens are among so many best, which spares the pass that counts the better ones


def token_logprobs(logits: torch.Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprob]:
    """Return one entry per row of the logits [N, V] fp32: of its token, with its `num_top` best alternatives.

    Natural logarithm of the softmax. Equal logits are ranked by id, so that a token of rank r is entry r - 1 of a long
    enough `top`. Also serves prompts: row i then holds the logits from which token i was predicted.
    """
    if not token_ids:
        return []
    total = logits.logsumexp(-1, keepdim=True)
    best_ids, best = _best(logits, min(max(_MIN_WIDTH, *num_top), logits.shape[-1]))
    rows = list(zip(best_ids.tolist(), (best - total).tolist(), strict=True))
    chosen = logits.gather(-1, send_index(token_ids, logits.device)[:, None])
    ranks = _ranks(logits, token_ids, [ids for ids, _ in rows])
    return [
        TokenLogprob(token_id, logprob, rank, tuple(zip(ids[:num], logprobs[:num], strict=True)))
        for token_id, logprob, rank, num, (ids, logprobs) in zip(
            token_ids, (chosen - total).squeeze(-1).tolist(), ranks, num_top, rows, strict=True
        )
    ]


def _ranks(logits: torch.Tensor, token_ids: Sequence[int], best_ids: Sequence[list[int]]) -> list[int]:
    """Return 1 + the number of tokens that are better, or as good with a lower id [N]."""
    ranks = [ids.index(token) + 1 if token in ids else 0 for token, ids in zip(token_ids, best_ids, strict=True)]
    for row, (rank, token) in enumerate(zip(ranks, token_ids, strict=True)):
        if rank == 0:
            own = logits[row, token]
            ranks[row] = 1 + int((logits[row] > own).sum()) + int((logits[row, :token] == own).sum())
    return ranks


def _best(logits: torch.Tensor, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and values [N, num] of the best tokens, best first, equal ones by id."""
    width = logits.shape[-1]
    taken = min(num + 1, width)
    values, ids = logits.topk(taken, dim=-1)
    ids, order = ids.sort(dim=-1)
    values, order = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, order)
    if taken < width:  # topk takes any of several equal tokens: where they reach over its edge, rank the whole row
        for row in (values[:, num - 1] == values[:, num]).nonzero().flatten().tolist():
            values[row], ids[row] = (part[:taken] for part in logits[row].sort(descending=True, stable=True))
    return ids[:, :num], values[:, :num]

"""The oracle of exactness: transformers' own forward pass, and the rule for ties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

TIE = 1e-4


@dataclass(frozen=True)
class Comparison:
    """How a greedy output compares with the reference: positions where the best token was taken, and ties taken."""

    num_equal: int
    num_ties: int
    max_logprob_error: float


def reference_logits(model: PreTrainedModel, token_ids: Sequence[int]) -> torch.Tensor:
    """Return the logits [T, V] of a sequence alone, by transformers."""
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([list(token_ids)]), use_cache=False).logits
    return logits[0].float()


def compare_greedy(
    model: PreTrainedModel, prompt: Sequence[int], output: Sequence[int], logprobs: Sequence[float] = ()
) -> Comparison:
    """Compare a greedy output with transformers, position by position along it.

    Every token must be the reference's best, or one of its two best where they differ by at most 1e-4. That is
    `generate`'s output wherever no tie occurs, and stays a test of every later token behind a tie.
    """
    assert output, "there is nothing to compare"
    logits = reference_logits(model, [*prompt, *output])[len(prompt) - 1 : -1]
    best = logits.topk(2, dim=-1)
    num_ties = 0
    for position, token_id in enumerate(output):
        values, ids = best.values[position].tolist(), best.indices[position].tolist()
        if token_id == ids[0]:
            continue
        assert token_id == ids[1], f"token {position} is {token_id}; the reference's two best are {ids}"
        assert values[0] - values[1] <= TIE, f"token {position} is second best by {values[0] - values[1]:.2e}"
        num_ties += 1
    errors = [
        abs(float(logits[position].log_softmax(-1)[output[position]]) - logprob)
        for position, logprob in enumerate(logprobs)
    ]
    return Comparison(len(output) - num_ties, num_ties, max(errors, default=0.0))


def dropped_logits(model: PreTrainedModel, token_ids: Sequence[int], start: int, stop: int, at: int) -> torch.Tensor:
    """Return the logits [T, V] of a sequence whose positions [start, stop) are hidden from every position from `at`
    on.
    """
    length = len(token_ids)
    positions = torch.arange(length)
    is_visible = positions[None, :] <= positions[:, None]
    is_visible[at:, start:stop] = False
    mask = torch.zeros(length, length).masked_fill(~is_visible, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        inputs = torch.tensor([list(token_ids)])
        logits: torch.Tensor = model(inputs, attention_mask=mask[None, None], use_cache=False).logits
    return logits[0].float()

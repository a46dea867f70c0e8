"""Which rows of a step's logits are for what, and the prompt's log-probabilities. Knows no sampling, no memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kea.engine.draft import StepWork, WorkItem
from kea.engine.logprobs import token_logprobs


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows of a step's logits are for what: drawing (by item), and the prompt's log-probabilities (by item).

    Behind the row that an item draws from stand those of its guesses.
    """

    logit_rows: list[int]
    draws: list[tuple[WorkItem, int]]
    prompts: list[tuple[WorkItem, int, int]]  # item, first and one past the last index into logit_rows


def select_rows(work: StepWork) -> Rows:
    """Choose the rows of the flattened batch whose logits are needed."""
    rows = Rows([], [], [])
    row = 0
    for item in work.items:
        if item.context.wants_scores and item.context.scores_until > item.start:
            first = len(rows.logit_rows)
            rows.logit_rows.extend(range(row, row + min(item.stop, item.context.scores_until) - item.start))
            rows.prompts.append((item, first, len(rows.logit_rows)))
        if item.draws:
            last = row + item.stop - item.start - 1
            if not rows.logit_rows or rows.logit_rows[-1] != last:
                rows.logit_rows.append(last)
            rows.draws.append((item, len(rows.logit_rows) - 1))
            rows.logit_rows.extend(range(last + 1, last + 1 + len(item.guesses)))
        row += item.num_tokens
    return rows


def score_prompt(item: WorkItem, logits: torch.Tensor) -> None:
    """Record the log-probability of every prompt token that follows a computed row."""
    context = item.context
    assert context.spec.prompt_logprobs is not None
    targets = context.tokens[item.start + 1 : item.start + 1 + len(logits)]
    entries = token_logprobs(logits, targets, [context.spec.prompt_logprobs] * len(targets))
    for offset, entry in enumerate(entries):
        context.prompt_logprobs[item.start + 1 + offset] = entry

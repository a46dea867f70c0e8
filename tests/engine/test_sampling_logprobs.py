"""Reported log-probabilities: of the raw logits, ranked, equal ones by id."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kea.engine.sampling import Drawn, Sampler, SamplingRow, token_logprobs
from kea.types import Sampling


def ranking(logits: torch.Tensor) -> list[int]:
    return [int(token_id) for token_id in np.argsort(-logits.numpy(), kind="stable")]


@pytest.mark.parametrize("width", [1, 3, 15, 16, 17, 500])
@pytest.mark.parametrize("is_rounded", [False, True])
def test_entries_agree_with_log_softmax(width: int, is_rounded: bool) -> None:
    logits = torch.randn(12, width, generator=torch.Generator().manual_seed(width)) * 2
    logits = logits.round() if is_rounded else logits
    token_ids = [(7 * row) % width for row in range(12)]
    num_top = [row % 6 * 4 for row in range(12)]
    expected = logits.double().log_softmax(-1)
    for row, entry in enumerate(token_logprobs(logits, token_ids, num_top)):
        order = ranking(logits[row])
        assert entry.token_id == token_ids[row]
        assert entry.logprob == pytest.approx(float(expected[row, token_ids[row]]), abs=1e-5)
        assert order[entry.rank - 1] == token_ids[row]
        assert [token_id for token_id, _ in entry.top] == order[: num_top[row]]
        assert [value for _, value in entry.top] == pytest.approx(
            expected[row, order[: num_top[row]]].tolist(), abs=1e-5
        )


def test_no_tokens_give_no_entries() -> None:
    assert token_logprobs(torch.empty(0, 5), [], []) == []


def test_the_logprob_is_of_the_logits_before_every_processor() -> None:
    sampler = Sampler(100, lambda: 0)
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(temperature=0.0, logit_bias={13: 50.0}, presence_penalty=1.0, repetition_penalty=2.0)
    states = [sampler.create_state(sampling, [13]) for _ in range(3)]
    drawn = sampler.sample(
        logits, [SamplingRow(state, logprobs=num) for state, num in zip(states, (None, 0, 2), strict=True)]
    )
    results = [item for item in drawn if isinstance(item, Drawn)]
    assert [item.token_id for item in results] == [13, 13, 13]
    assert results[0].logprob is None
    for row in (1, 2):
        entry = results[row].logprob
        assert entry is not None
        assert entry.logprob == pytest.approx(float(logits[row].log_softmax(-1)[13]), abs=1e-5)
        assert entry.rank == ranking(logits[row]).index(13) + 1
        assert len(entry.top) == (0, 0, 2)[row]

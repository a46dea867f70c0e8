"""Sampling for a device that works on its own: the same tokens, and one transfer to the host for a whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from kea.engine import choices as module
from kea.engine.choices import Choice
from kea.engine.drawing_ahead import draw_ahead
from kea.engine.sampling import Drawn, Sampler, SamplingRow, choose_rows_ahead
from kea.errors import EngineFault, InvalidRequest, KeaError
from kea.types import Sampling

VOCAB = 900
READS = ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "cpu", "nonzero")


def sample(logits: torch.Tensor, samplings: Sequence[Sampling]) -> list[Drawn | KeaError]:
    sampler = Sampler(VOCAB, lambda: 7)
    return sampler.sample(logits, [SamplingRow(sampler.create_state(sampling, [1, 2, 3])) for sampling in samplings])


def choose_as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the sampler treat the CPU as a device that is not waited for."""

    def choose(_: Sampler, logits: torch.Tensor, rows: Sequence[SamplingRow]) -> Choice:
        return choose_rows_ahead(logits, rows)

    monkeypatch.setattr(Sampler, "_choose", choose)


def mixed(num_rows: int) -> tuple[torch.Tensor, list[Sampling]]:
    kinds = [
        Sampling(temperature=0.0),
        Sampling(seed=4),
        Sampling(top_p=0.8, seed=5),
        Sampling(top_k=20, seed=6),
        Sampling(top_k=300, top_p=0.9, min_p=0.01, seed=7),
        Sampling(repetition_penalty=1.3, seed=8),
    ]
    logits = torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(1)).mul_(3.0)
    return logits, [kinds[i % len(kinds)] for i in range(num_rows)]


def test_a_device_draws_what_a_cpu_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, samplings = mixed(64)
    logits[9] = torch.nan
    expected = sample(logits, samplings)
    choose_as_on_a_device(monkeypatch)
    actual = sample(logits, samplings)
    assert isinstance(actual[9], EngineFault)
    assert isinstance(expected[9], EngineFault)
    del actual[9], expected[9]
    assert actual == expected


def test_what_is_not_settled_ahead_is_drawn_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, samplings = mixed(60)
    expected = sample(logits, samplings)
    original = draw_ahead

    def nothing_settled(rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
        token_ids, is_settled = original(rows)
        return torch.zeros_like(token_ids), torch.zeros_like(is_settled)

    choose_as_on_a_device(monkeypatch)
    monkeypatch.setattr(module, "draw_ahead", nothing_settled)
    assert sample(logits, samplings) == expected


def test_a_batch_is_read_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, samplings = mixed(24)
    choose_as_on_a_device(monkeypatch)
    reads: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def read(self: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
            reads.append(name)
            return function(self, *arguments, **keywords)

        return read

    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, counted(name, getattr(torch.Tensor, name)))
    drawn = sample(logits, samplings)
    monkeypatch.undo()
    assert all(isinstance(row, Drawn) for row in drawn)
    assert reads == ["tolist"]


def test_a_row_without_an_allowed_token_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_as_on_a_device(monkeypatch)
    sampler = Sampler(VOCAB, lambda: 7)
    state = sampler.create_state(Sampling(seed=1), [])
    nothing = torch.zeros(-(-VOCAB // 32), dtype=torch.int32)
    (refused,) = sampler.sample(torch.zeros(1, VOCAB), [SamplingRow(state, mask=nothing)])
    assert isinstance(refused, InvalidRequest)

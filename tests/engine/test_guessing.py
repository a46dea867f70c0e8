"""How many guesses are verified, and when none are: what pays as predicted, and as measured."""

from __future__ import annotations

import pytest

from kea.engine.base import StepShape
from kea.engine.config import DecodingConfig
from kea.engine.guessing import STRETCH, GuessBudget, Payoff
from kea.engine.latency import LatencyModel
from kea.models import Tokenizer
from kea.types import Speculation
from tests.engine.conftest import MakeDriver
from tests.engine.driver import greedy

GUESS = Speculation(6, 1, 3)
TEXT = "One day, a girl named Sue found a red box in the garden. " * 2 + "One day, a girl"


def test_contexts_that_could_guess_stand_while_guesses_do_not_pay(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def pays(_: Payoff, num_contexts: int) -> bool:
        asked.append(num_contexts)
        return False

    monkeypatch.setattr(Payoff, "pays", pays)
    driver = make_driver(decoding=DecodingConfig(speculation=GUESS))
    driver.start(stories_tokenizer.encode(TEXT), greedy(100))
    driver.run()
    assert driver.core.snapshot().num_draft_tokens == 0
    assert 100 / STRETCH <= asked.count(1) <= 100 / STRETCH + 2


def test_guesses_are_tried_where_only_steps_without_were_measured() -> None:
    """A batch without guesses may grow into one of a size that was not asked about."""
    payoff = Payoff()
    payoff.observe(4, 4, 1.0, is_guessing=False)
    assert payoff.pays(4)
    assert 5 < sum(_choices(payoff, 1.0, 2.5, 1000)) < 100


def _choices(payoff: Payoff, plain_s: float, guessing_s: float, num_steps: int) -> list[bool]:
    """Ask again and again, with steps of 4 contexts that take so long and give two tokens of each where guesses are."""
    made = []
    for _ in range(num_steps):
        made.append(payoff.pays(4))
        seconds, num_tokens = (guessing_s, 8) if made[-1] else (plain_s, 4)
        payoff.observe(4, num_tokens, seconds, is_guessing=made[-1])
    return made


def test_guesses_are_made_where_they_give_tokens_sooner() -> None:
    assert sum(_choices(Payoff(), 1.0, 1.5, 1000)) > 950
    assert 5 < sum(_choices(Payoff(), 1.0, 2.5, 1000)) < 100


def test_a_choice_follows_the_load() -> None:
    payoff = Payoff()
    _choices(payoff, 1.0, 1.5, 200)
    assert sum(_choices(payoff, 1.0, 4.0, 400)) < 250
    assert sum(_choices(payoff, 4.0, 4.0, 600)) > 350


def test_batches_of_another_size_are_another_matter() -> None:
    payoff = Payoff()
    _choices(payoff, 1.0, 5.0, 100)
    assert not payoff.pays(4)
    assert payoff.pays(1)


def _learned(per_sequence_s: float, base_s: float) -> LatencyModel:
    latency = LatencyModel()
    for step in range(200):
        num_sequences = 1 + step % 40
        latency.observe(StepShape(0, num_sequences, 100 * num_sequences), base_s + per_sequence_s * num_sequences)
    return latency


def test_guesses_are_verified_where_rows_are_cheap_and_likely_right() -> None:
    cheap, dear = _learned(1e-4, 1e-2), _learned(5e-3, 1e-2)
    alone = StepShape(0, 1, 100)
    assert GuessBudget(cheap, alone, 1, None).take(0.9, 100, 8) == 8
    assert GuessBudget(cheap, alone, 1, None).take(0.001, 100, 8) == 0
    assert 0 < GuessBudget(cheap, alone, 1, None).take(0.3, 100, 8) < 8
    assert GuessBudget(dear, StepShape(0, 32, 3200), 32, None).take(0.9, 100, 8) == 0
    assert GuessBudget(LatencyModel(), alone, 1, None).take(0.5, 100, 8) == 8


def test_a_probe_verifies_what_does_not_seem_to_pay() -> None:
    dear, many = _learned(5e-3, 1e-2), StepShape(0, 32, 3200)
    assert GuessBudget(dear, many, 32, None, probes=True).take(0.1, 100, 8) == 8
    assert GuessBudget(dear, many, 32, dear.predict(many), probes=True).take(0.9, 100, 8) == 0


def test_probes_are_rare(
    make_driver: MakeDriver, stories_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes: list[bool] = []

    def take(budget: GuessBudget, *_: object) -> int:
        probes.append(budget._probes)
        return int(budget._probes)

    monkeypatch.setattr(GuessBudget, "take", take)
    monkeypatch.setattr(Payoff, "pays", lambda *_: True)
    driver = make_driver(decoding=DecodingConfig(speculation=GUESS))
    driver.start(stories_tokenizer.encode(TEXT), greedy(100))
    driver.run()
    assert probes[0], "the first guess is verified"
    assert 0 < sum(probes[1:]) <= 6


def test_guesses_stay_within_the_objective() -> None:
    latency = _learned(1e-3, 1e-2)
    base_s = latency.predict(StepShape(0, 1, 100))
    assert GuessBudget(latency, StepShape(0, 1, 100), 1, base_s + 4.5e-3).take(1.0, 100, 8) == 4

"""What drivers of stepped engines measure, on an engine whose steps are known."""

from __future__ import annotations

import time
from typing import Any

import pytest

from kea.bench.engine.drivers.answering import answer
from kea.bench.engine.drivers.stepping import Driver

STEP_S = 0.002


class FakeEngine:
    """Computes one prompt per step, then draws a token for all that are computed; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], int, str]] = []
        self.left: dict[int, int] = {}
        self.computed: set[int] = set()
        self.skipped = -1

    def load(self, **arguments: Any) -> dict[str, Any]:
        return {"version": "1", "note": ""}

    def add(self, prompt: list[int], output_len: int, salt: str = "") -> int:
        key = len(self.asked)
        self.asked.append((prompt, output_len, salt))
        self.left[key] = output_len
        return key

    def step(self) -> dict[int, int]:
        time.sleep(STEP_S)
        waiting = [key for key in self.left if key not in self.computed]
        self.computed.update(waiting[:1])
        drawn = {key: 1 for key in self.left if key in self.computed and key != self.skipped}
        for key in drawn:
            self.left[key] -= 1
        self.left = {key: left for key, left in self.left.items() if left}
        return drawn

    def cancel(self, key: int) -> None:
        self.left.pop(key, None)

    def has_work(self) -> bool:
        return bool(self.left)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


def test_decode_times_only_steps_that_draw_for_all(engine: FakeEngine) -> None:
    result = Driver(engine).decode([[1], [2], [3]], steps=4, warmups=2)
    assert len(result["step_s"]) == 4
    assert all(STEP_S <= seconds < 100 * STEP_S for seconds in result["step_s"])
    assert not engine.has_work()


def test_a_step_that_misses_a_sequence_is_an_error(engine: FakeEngine) -> None:
    class Skipping(FakeEngine):
        def step(self) -> dict[int, int]:
            drawn = super().step()
            self.skipped = 1 if len(self.computed) == 2 else -1
            return drawn

    reply = answer(Driver(Skipping()), {"op": "decode", "prompts": [[1], [2]], "steps": 2, "warmups": 0})
    assert "1 tokens for 2 sequences" in reply["error"]


def test_without_sharing_every_sequence_has_a_salt_of_its_own(engine: FakeEngine) -> None:
    order = {"prefix": [1, 2], "groups": [[3], [4]], "prompts": [(0, [5]), (1, [6])], "strangers": [[7]]}
    driver = Driver(engine)
    driver.shared(**order, steps=1, warmups=0, share=False)  # type: ignore[arg-type]
    assert [prompt for prompt, _, _ in engine.asked] == [[1, 2, 3, 5], [1, 2, 4, 6], [7]]
    assert len({salt for _, _, salt in engine.asked}) == 3
    engine.asked.clear()
    driver.shared(**order, steps=1, warmups=0, share=True)  # type: ignore[arg-type]
    assert {salt for _, _, salt in engine.asked} == {""}


def test_arrivals_wait_for_their_time_and_count_from_it(engine: FakeEngine) -> None:
    result = Driver(engine).arrivals([(0.0, [1], 3), (0.05, [2], 1)])
    first, second = result["requests"]
    assert first["tpot_s"] == pytest.approx(STEP_S, abs=20 * STEP_S)
    assert second["tpot_s"] is None
    assert second["offset_s"] == 0.05
    assert all(STEP_S <= row["ttft_s"] <= row["e2e_s"] < 0.5 for row in result["requests"])


def test_one_at_a_time_waits_for_the_last(engine: FakeEngine) -> None:
    Driver(engine).unloaded([(0.0, [1], 3), (0.0, [2], 3)])
    assert engine.computed == {0, 1}


def test_a_warm_prompt_is_the_same_prompt(engine: FakeEngine) -> None:
    result = Driver(engine).warm([1, 2])
    assert [prompt for prompt, _, _ in engine.asked] == [[1, 2], [1, 2]]
    assert result["cold_s"] > 0
    assert result["warm_s"] > 0

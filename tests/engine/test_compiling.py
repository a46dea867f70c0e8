"""A constraint that takes long to compile holds up nobody but the generation that wants it."""

from __future__ import annotations

import threading

import pytest

from kea.engine.constraints import ConstraintCompiler, ConstraintState
from kea.errors import Cancelled, EngineFault, InvalidRequest
from kea.models import Tokenizer
from kea.types import Constraint, GenerateOptions, Sampling, Stopping
from tests.engine.conftest import MakeDriver
from tests.engine.driver import Driver, greedy

CHOICE = Constraint("choice", '["there", "once"]')
CONSTRAINED = GenerateOptions(Stopping(20), Sampling(temperature=0.0), CHOICE)


@pytest.fixture
def driver(make_driver: MakeDriver) -> Driver:
    return make_driver()


@pytest.fixture
def prompt(stories_tokenizer: Tokenizer) -> list[int]:
    return stories_tokenizer.encode("Once upon a time")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold every compilation until this is set."""
    opened = threading.Event()
    compile_ = ConstraintCompiler.compile

    def compile_later(compiler: ConstraintCompiler, constraint: Constraint) -> ConstraintState:
        assert opened.wait(30)
        return compile_(compiler, constraint)

    monkeypatch.setattr(ConstraintCompiler, "compile", compile_later)
    return opened


def test_others_go_on_meanwhile(driver: Driver, prompt: list[int], gate: threading.Event) -> None:
    constrained = [driver.start(prompt, CONSTRAINED) for _ in range(3)]
    other = driver.start(prompt, greedy(20))
    for _ in range(30):
        driver.step()
    assert len(other.token_ids) == 20
    assert not any(output.token_ids for output in constrained)
    assert driver.core.wait_s is not None
    gate.set()
    driver.run()
    assert {output.text for output in constrained} <= {"there", "once"}
    finish = constrained[0].finish
    assert finish is not None
    assert finish.usage.waiting_s > 0.03  # thirty steps of the test's clock


def test_one_that_is_being_compiled_is_cancelled_or_freed(
    driver: Driver, prompt: list[int], gate: threading.Event
) -> None:
    context = driver.context()
    driver.append(context, prompt)
    cancelled = driver.generate(context, CONSTRAINED)
    after = driver.generate(context, greedy(3))
    other = driver.context()
    driver.append(other, prompt)
    freed = driver.generate(other, CONSTRAINED)
    driver.step()
    driver.cancel(cancelled)
    driver.free(other)
    for _ in range(10):
        driver.step()
    assert isinstance(cancelled.error, Cancelled)
    assert isinstance(freed.error, Cancelled)
    assert len(after.token_ids) == 3
    assert driver.core.wait_s is None
    gate.set()


def test_errors_of_compiling_reach_their_generation(
    driver: Driver, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = Constraint("regex", "(")
    refused = driver.start(prompt, GenerateOptions(Stopping(5), Sampling(), bad))
    driver.run()
    assert isinstance(refused.error, InvalidRequest)

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(ConstraintCompiler, "compile", fail)
    failed = driver.start(prompt, CONSTRAINED)
    other = driver.start(prompt, greedy(3))
    driver.run()
    assert isinstance(failed.error, EngineFault)
    assert len(other.token_ids) == 3

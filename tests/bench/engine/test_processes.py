"""Systems in processes: answers over pipes, refusals with their reason, ends that leave nothing behind."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kea.bench.engine.base import Answer, Order, Precision, Refusal, SystemSpec
from kea.bench.engine.fleet import Fleet, LoadedSystem, LoadOrder
from kea.bench.engine.processes import ProcessSystem

FAKE = Path(__file__).parent / "fake_driver.py"
SOON_S = 20.0


def spec(**load_args: object) -> SystemSpec:
    return SystemSpec("fake", Precision.F32, Path(sys.executable), FAKE, Path("model"), {"A": "b"}, load_args)


def decode(steps: int = 3) -> Order:
    return Order("decode", {"prompts": [[1, 2]], "steps": steps, "warmups": 0})


def is_running(pid: int) -> bool:
    """Say whether a process is there and has not ended (one that nobody waited for is a zombie)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@pytest.fixture
def process(tmp_path: Path) -> Iterator[ProcessSystem]:
    system = ProcessSystem(spec(), tmp_path / "log")
    yield system
    system.close()


def test_orders_are_answered_in_their_turn(process: ProcessSystem) -> None:
    assert isinstance(process.ask(Order("load", {"step_s": 0.5, "threads": 2}), SOON_S), Answer)
    for steps in (1, 4):
        answer = process.ask(decode(steps), SOON_S)
        assert isinstance(answer, Answer)
        assert answer.values["step_s"] == [0.5] * steps


def test_what_libraries_print_goes_to_the_log(process: ProcessSystem) -> None:
    process.ask(Order("load", {}), SOON_S)
    process.close()
    assert "libraries print what they like" in process.log.read_text()


def test_what_a_system_lacks_is_told_with_the_reason(process: ProcessSystem) -> None:
    assert process.ask(Order("warm", {"prompt": [1]}), SOON_S) == Refusal("unsupported", "no cache")
    lacking = process.ask(Order("fly", {}), SOON_S)
    assert isinstance(lacking, Refusal)
    assert lacking.kind == "unsupported"


def test_a_fault_is_told_and_the_system_goes_on(process: ProcessSystem) -> None:
    refusal = process.ask(Order("load", {"fail": "no such model"}), SOON_S)
    assert refusal == Refusal("failed", "RuntimeError: no such model")
    assert isinstance(process.ask(decode(), SOON_S), Answer)


def test_a_process_that_ends_is_told_with_its_last_words(process: ProcessSystem) -> None:
    refusal = process.ask(Order("die", {}), SOON_S)
    assert isinstance(refusal, Refusal)
    assert refusal.kind == "died"
    assert "something broke" in refusal.message


def test_a_timeout_ends_the_process(process: ProcessSystem) -> None:
    assert isinstance(process.ask(Order("load", {}), SOON_S), Answer)
    started = time.monotonic()
    refusal = process.ask(Order("wait", {"seconds": 60}), 0.2)
    assert isinstance(refusal, Refusal)
    assert refusal.kind == "timeout"
    assert time.monotonic() - started < SOON_S
    with pytest.raises(ProcessLookupError):
        os.killpg(process._process.pid, 0)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("dies", [False, True])
def test_what_a_system_started_ends_with_it(process: ProcessSystem, dies: bool) -> None:
    answer = process.ask(Order("start_child", {"seconds": 600}), SOON_S)
    assert isinstance(answer, Answer)
    child = answer.values["pid"]
    assert is_running(child)
    if dies:
        process.ask(Order("die", {}), SOON_S)
    process.close()
    deadline = time.monotonic() + SOON_S
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


def test_an_interrupt_while_a_system_loads_ends_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[ProcessSystem] = []

    def interrupted(system: ProcessSystem, *_: object) -> Answer:
        begun.append(system)
        raise KeyboardInterrupt

    monkeypatch.setattr(ProcessSystem, "ask", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        Fleet([LoadedSystem(spec(), LoadOrder({}, tmp_path, SOON_S))]) as fleet,
    ):
        fleet.load(fleet._all[0], SOON_S)
    assert begun[0]._process.poll() is not None


def test_a_driver_that_cannot_be_imported_is_a_failure(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import a_library_that_is_not_there\n")
    system = ProcessSystem(SystemSpec("broken", Precision.F32, Path(sys.executable), broken, Path()), tmp_path / "log")
    refusal = system.ask(Order("load", {}), SOON_S)
    system.close()
    assert isinstance(refusal, Refusal)
    assert "a_library_that_is_not_there" in refusal.message


def test_a_system_that_ended_is_loaded_again_but_not_forever(tmp_path: Path) -> None:
    system = LoadedSystem(spec(step_s=0.25), LoadOrder({"threads": 2}, tmp_path, SOON_S))
    with Fleet([system]) as fleet:
        peer = fleet.load(system, SOON_S)
        assert (peer.status, peer.version, peer.note) == ("measured", "fake 1", "threads 2")
        for _ in range(3):
            assert isinstance(system.ask(decode(), SOON_S), Answer)
            refusal = system.ask(Order("die", {}), SOON_S)
            assert isinstance(refusal, Refusal)
        assert system.ask(decode(), SOON_S) == Refusal("died", "its process ended 3 times")


def test_a_system_that_does_not_load_is_recorded_and_not_measured(tmp_path: Path) -> None:
    good, bad = (LoadedSystem(spec(fail=fail), LoadOrder({}, tmp_path, SOON_S)) for fail in ("", "no memory"))
    with Fleet([good, bad]) as fleet:
        for system in (good, bad):
            fleet.load(system, SOON_S)
        assert fleet.systems == [good]
        assert [(peer.status, peer.note) for peer in fleet.peers][1] == ("failed", "RuntimeError: no memory")


def test_a_python_that_is_not_there_is_a_refusal(tmp_path: Path) -> None:
    absent = SystemSpec("fake", Precision.F32, tmp_path / "python", FAKE, Path())
    answer = LoadedSystem(absent, LoadOrder({}, tmp_path, SOON_S)).load(SOON_S)
    assert isinstance(answer, Refusal)
    assert answer.kind in ("died", "failed")


def test_the_first_token_of_a_new_process_counts_from_its_start(tmp_path: Path) -> None:
    system = LoadedSystem(spec(), LoadOrder({}, tmp_path, SOON_S))
    answer = system.ask_new(Order("prefill", {"prompt": [1]}), SOON_S)
    assert isinstance(answer, Answer)
    assert 0.01 < answer.values["seconds"] < SOON_S

"""A run of an application over a fake engine: what it shows, what it waits for, how it ends."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kea
from kea.cli.application import Application
from kea.cli.running import ApplicationFailed, run_application
from kea.errors import CallFailed, EngineFault, InvalidRequest
from kea.types import GenerateOptions
from tests.cli.support import fake_transport
from tests.fakes.engine import FakeEngine


def shout(prompt: str, options: GenerateOptions) -> str:
    return prompt.upper()


@kea.function
def louder(text: kea.Input, answer: kea.Output) -> None:
    """{{text}}{{answer}}"""


@kea.function
def twice(text: kea.Input, first: kea.Output, second: kea.Output) -> None:
    """{{text}}{{first}}{{second}}"""


def run(main: Callable[..., Any], *arguments: str, engine: FakeEngine | None = None, **options: Any) -> int:
    application = Application(Path(__file__), main)
    return run_application(application, arguments, fake_transport(engine or FakeEngine(shout)), **options)


def test_outputs_are_shown_though_nobody_reads_them(capsys: pytest.CaptureFixture[str]) -> None:
    def main(session: kea.Session) -> None:
        louder(louder("a"))

    assert run(main) == 0
    shown = capsys.readouterr().out
    assert "louder 1  " in shown
    assert "  A\n" in shown
    assert "2 calls in" in shown


def test_the_application_reads_its_results_too(capsys: pytest.CaptureFixture[str]) -> None:
    def main(session: kea.Session, name: str) -> None:
        print("got", louder(name).get())  # noqa: T201 - applications print

    assert run(main, "kea") == 0
    assert "got KEA\n" in capsys.readouterr().out


def test_several_outputs_have_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    def main(session: kea.Session) -> None:
        twice("a")

    assert run(main) == 0
    shown = capsys.readouterr().out
    assert "twice: first  " in shown
    assert "twice: second  " in shown


def test_a_coroutine_function_is_awaited(capsys: pytest.CaptureFixture[str]) -> None:
    async def main(session: kea.Session) -> None:
        variable = louder("async")
        streamed = "".join([piece async for piece in variable.astream()])
        print("got", await variable.aget(), streamed)  # noqa: T201

    assert run(main) == 0
    assert "got ASYNC ASYNC\n" in capsys.readouterr().out


def test_quiet_leaves_out_the_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    def main(session: kea.Session) -> None:
        louder("hidden")

    assert run(main, shows_outputs=False) == 0
    assert "HIDDEN" not in capsys.readouterr().out


def test_a_failed_call_is_shown_and_is_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    engine = FakeEngine(shout)
    engine.fail_next(EngineFault("A kernel failed."), matches="bad")

    def main(session: kea.Session) -> None:
        louder("good")
        louder(louder("bad"))

    assert run(main, engine=engine) == 1
    shown = capsys.readouterr().out
    assert "GOOD" in shown
    assert "louder 2  failed" in shown
    assert "A kernel failed." in shown
    assert "louder 3  failed" in shown


def test_an_error_that_the_application_meets_is_raised() -> None:
    engine = FakeEngine(shout)
    engine.fail_next(EngineFault("A kernel failed."))

    def main(session: kea.Session) -> None:
        louder("bad").get()

    with pytest.raises(CallFailed, match=r"A kernel failed\."):
        run(main, engine=engine)


def test_an_error_of_the_application_keeps_its_own_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def main(session: kea.Session) -> None:
        raise ValueError("my own mistake")

    with pytest.raises(ApplicationFailed):
        run(main)
    said = capsys.readouterr().err
    assert "ValueError: my own mistake" in said
    assert __file__ in said
    assert "running.py" not in said.replace(__file__, "")


def test_the_timeline_is_written_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def main(session: kea.Session) -> None:
        louder(louder("a"))

    path = tmp_path / "timeline.json"
    assert run(main, json_file=path) == 0
    calls = json.loads(path.read_text())["calls"]
    assert [(call["name"], call["state"]) for call in calls] == [("louder", "done"), ("louder", "done")]
    assert calls[1]["reads"] == calls[0]["writes"]


def test_an_interrupted_run_leaves_no_timeline_and_the_one_before(tmp_path: Path) -> None:
    def main(session: kea.Session) -> None:
        raise KeyboardInterrupt

    for text in (None, "before"):
        path = tmp_path / "timeline.json"
        if text is not None:
            path.write_text(text)
        with pytest.raises(KeyboardInterrupt):
            run(main, json_file=path)
        assert {file.name: file.read_text() for file in tmp_path.iterdir()} == (
            {} if text is None else {path.name: text}
        )


def test_a_timeline_may_go_to_what_is_no_file(tmp_path: Path) -> None:
    assert run(lambda session: None, json_file=Path(os.devnull)) == 0
    assert not Path(os.devnull).is_file()
    (tmp_path / "real.json").touch()
    (tmp_path / "link.json").symlink_to("real.json")
    assert run(lambda session: None, json_file=tmp_path / "link.json") == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["calls"] == []


def test_what_cannot_be_written_is_told_before_the_run(tmp_path: Path) -> None:
    def main(session: kea.Session) -> None:
        raise AssertionError("it ran")

    with pytest.raises(InvalidRequest, match="cannot be written"):
        run(main, json_file=tmp_path / "absent" / "timeline.json")


def test_arguments_that_main_does_not_take_are_refused() -> None:
    def main(session: kea.Session) -> None:
        raise AssertionError("it ran")

    with pytest.raises(InvalidRequest, match="does not take a session and 1 argument"):
        run(main, "x")


def test_an_interrupt_ends_the_session_and_frees_the_engine() -> None:
    engine = FakeEngine(shout)

    def main(session: kea.Session) -> None:
        louder("never")
        session.loop.call_soon(engine.hold)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(main, engine=engine)
    assert not engine.contexts


def test_many_calls_are_all_read(capsys: pytest.CaptureFixture[str]) -> None:
    def main(session: kea.Session) -> None:
        session.map(louder, [f"call {number}" for number in range(300)])

    assert run(main) == 0
    shown = capsys.readouterr().out
    assert sum(line.startswith("louder[") and "CALL" in line for line in shown.splitlines()) == 300

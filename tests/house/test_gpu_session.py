"""The script that runs all GPU checks keeps its time, goes on after a failure, and writes down how each part ended."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tools import gpu_session
from tools.gpu_session import FIRST, PARTS, Part, main, run_parts

WRITES = "import pathlib, sys; pathlib.Path(sys.argv[2]).write_text('{}'); print('measured', sys.argv[1])"


def script(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


def test_every_part_is_run_and_its_end_is_written_down(tmp_path: Path) -> None:
    parts = (
        Part("good", script("print('well')"), 60.0),
        Part("bad", script("raise SystemExit(3)"), 60.0),
        Part("slow", script("import time; print('begun', flush=True); time.sleep(60)"), 1.0),
        Part("figures", script(WRITES), 60.0, "--json"),
    )
    outcomes = run_parts(parts, tmp_path / "out", minutes=5.0)
    assert [(one.part, one.ended, one.status) for one in outcomes] == [
        ("good", "ok", 0), ("bad", "failed", 3), ("slow", "late", None), ("figures", "ok", 0),
    ]  # fmt: skip
    record = json.loads((tmp_path / "out" / "session.json").read_text())
    assert [one["ended"] for one in record["parts"]] == ["ok", "failed", "late", "ok"]
    assert record["machine"]["torch"]
    assert (tmp_path / "out" / "good.log").read_text() == "well\n"
    assert (tmp_path / "out" / "figures.log").read_text() == "measured --json\n"
    assert (tmp_path / "out" / "figures.json").read_text() == "{}"


def test_a_part_without_time_is_skipped_and_nothing_outlives_its_own(tmp_path: Path) -> None:
    child = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).wait()"
    )
    parts = (Part("long", script(child), 1.0), Part("next", script("print(1)"), 60.0))
    started = time.monotonic()
    outcomes = run_parts(parts, tmp_path, minutes=15.5 / 60.0)
    assert [one.ended for one in outcomes] == ["late", "skipped"]
    assert time.monotonic() - started < 30.0


def test_parts_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(FIRST) <= {part.name for part in PARTS}
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(PARTS)
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--parts", "tests,everything"])
    assert "parts are tests, attention" in capsys.readouterr().err


def test_the_commands_of_the_bench_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is parsed to its settings by the command itself, as on a machine with a GPU."""
    import torch
    import typer

    from kea.bench.engine import command
    from kea.bench.engine.settings import EngineSettings

    seen: list[EngineSettings] = []

    def run(settings: EngineSettings, _: Path | None) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "run", run)
    app = typer.Typer()
    app.command()(command.engine)
    benches = [part for part in PARTS if part.command[: len(gpu_session.BENCH)] == gpu_session.BENCH]
    for part in benches:
        result = CliRunner().invoke(app, part.command[len(gpu_session.BENCH) - 2 :])
        assert result.exit_code == 0, result.output
    assert [settings.weights.shape.name for settings in seen] == ["1b", "8b", "1b", "8b"]
    assert all(settings.device == "cuda:0" for settings in seen)
    assert [bool(settings.peers) for settings in seen] == [False, False, True, True]

"""`make check` runs all its checks and says which failed; unknown names are refused in a sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools import check
from tools.findings import ROOT, Finding, run_check


def test_all_checks_run_also_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "CHECKS", {"bad": ("tools.no_such_module",), "good": ("this",)})
    assert check.main([]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1] == "1 of 2 checks failed: bad"
    assert "Beautiful is better than ugly." in lines
    assert [line.split()[:2] for line in lines[-3:-1]] == [["FAILED", "bad"], ["ok", "good"]]


def test_one_check_can_be_run_alone(capfd: pytest.CaptureFixture[str]) -> None:
    assert check.main(["imports"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "all checks passed"


def test_an_unknown_check_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["speling"]) == 2
    assert capsys.readouterr().err.startswith("There is no check named speling; checks are format, lint, types")


def test_the_list_names_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == list(check.CHECKS)


@pytest.mark.parametrize("name", [name for name, command in check.CHECKS.items() if command[0].startswith("tools.")])
def test_every_check_of_ours_is_a_command_that_ends_in_a_sentence(name: str) -> None:
    command = [sys.executable, "-m", *check.CHECKS[name]]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr
    assert result.returncode in {0, 1}
    assert result.stdout.splitlines()[-1].split(": ")[-1].split()[-1] in {"ok", "problem", "problems"}


def test_findings_are_printed_sorted_and_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [Finding("b.py", 2, "is wrong."), Finding("a.py", 0, "is long."), Finding("b.py", 2, "is wrong.")]
    assert run_check("things", lambda root: found, tmp_path) == 1
    assert capsys.readouterr().out == "a.py: is long.\nb.py:2: is wrong.\nthings: 2 problems\n"
    assert run_check("things", lambda root: [], tmp_path) == 0
    assert capsys.readouterr().out == "things: ok\n"

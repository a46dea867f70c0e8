"""`kea run` as a process, on a server: arguments, the timeline's file, failures, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from tests.cli.support import Served, kea, start

APPLICATION = """
import kea

@kea.function(temperature=0, max_tokens=8)
def story(start: kea.Input, text: kea.Output):
    '''{{start}}{{text}}'''

def main(session, start, times="2"):
    stories = [story(start) for _ in range(int(times))]
    print("the last:", story(stories[-1]).get(), flush=True)
"""
ENDLESS = """
import kea

@kea.function(temperature=0, max_tokens=500, ignore_eos=True)
def story(start: kea.Input, text: kea.Output):
    '''{{start}}{{text}}'''

def main(session):
    variable = story("Once")
    while variable is not None:
        for piece in variable.stream():
            print(piece, flush=True)
        variable = story("Once")
"""


def write(folder: Path, text: str) -> str:
    path = folder / "application.py"
    path.write_text(text)
    return str(path)


def test_an_application_on_a_server(served: Served, tmp_path: Path) -> None:
    timeline = tmp_path / "timeline.json"
    path = write(tmp_path, APPLICATION)
    result = kea("run", path, "Once upon a time", "3", "--url", served.url, "--json", str(timeline))
    assert result.returncode == 0, result.stderr
    assert "the last: " in result.stdout
    assert "story 4  " in result.stdout
    assert "4 calls in" in result.stdout
    assert len(json.loads(timeline.read_text())["calls"]) == 4


def test_quiet_and_arguments_behind_two_dashes(served: Served, tmp_path: Path) -> None:
    result = kea("run", write(tmp_path, APPLICATION), "--url", served.url, "--quiet", "--", "--Once", "1")
    assert result.returncode == 0, result.stderr
    assert "story 1  " not in result.stdout.split("call")[0]


def test_arguments_that_main_does_not_take(served: Served, tmp_path: Path) -> None:
    result = kea("run", write(tmp_path, APPLICATION), "--url", served.url)
    assert result.returncode == 2
    assert "does not take a session and no arguments" in result.stderr


def test_an_application_in_this_process(stories260k: Path, tmp_path: Path) -> None:
    result = kea("run", write(tmp_path, APPLICATION), "Once", "--model", str(stories260k), "--kv-memory", "8MiB")
    assert result.returncode == 0, result.stderr
    assert "3 calls in" in result.stdout


def test_ctrl_c_ends_the_run_and_its_calls(served: Served, tmp_path: Path) -> None:
    with start("run", write(tmp_path, ENDLESS), "--url", served.url) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said == "Interrupted.\n"
    sessions = kea("complete", "Once", "--url", served.url, "--max-tokens", "2")
    assert sessions.returncode == 0

"""The README does what it says: every shell line that needs no network is run, and every block of Python.

Lines that use the model or the server of the reader get small ones: `my-model` is the small trained Llama,
`my-chat-model` the embedded model, and the server at port 8000 one that is started here.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kea.cli.app import app
from kea.models import require_embedded_model
from tests.cli.support import serve
from tests.conftest import ROOT
from tools.markdown import walk_commands, walk_pieces

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = [
    command
    for piece in walk_pieces(README)
    if piece.language == "sh"
    for _, command in walk_commands(f"```sh\n{piece.text}\n```")
]
PYTHON = [piece.text for piece in walk_pieces(README) if piece.language == "python"]
ADDRESS = "http://127.0.0.1:8000"
ANSWERS = {"kea chat": "Question: Where does Tarn Osk live?\n/exit\n"}


@pytest.fixture(scope="module")
def place(stories260k: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the reader's: the examples, two models, the application of the README."""
    embedded = require_embedded_model()
    folder = tmp_path_factory.mktemp("place")
    (folder / "my-model").symlink_to(stories260k)
    (folder / "my-chat-model").symlink_to(embedded)
    (folder / "examples").symlink_to(ROOT / "examples")
    (application,) = (text for text in PYTHON if "def main(session)" in text)
    (folder / "application.py").write_text(application, encoding="utf-8")
    return folder


def of_kind(*kinds: str, but: tuple[str, ...] = ()) -> list[str]:
    return [line for line in SHELL if line.startswith(kinds) and not line.startswith(but)]


@pytest.fixture(scope="module")
def url(place: Path) -> Iterator[str]:
    """The address of the server that the first line serves."""
    with serve(*shlex.split(of_kind("kea serve")[0])[2:], cwd=place) as server:
        yield server.url


def test_no_line_is_left_out() -> None:
    known = {*of_kind("make "), *of_kind("kea "), "source .venv/bin/activate"}
    assert set(SHELL) == known
    assert len(PYTHON) == 2


@pytest.mark.parametrize("line", of_kind("make "))
def test_make_lines_name_targets(line: str) -> None:
    done = subprocess.run(["make", "-n", *shlex.split(line)[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", of_kind("kea serve")[1:])
def test_serve_lines_serve(line: str, place: Path) -> None:
    with serve(*shlex.split(line)[2:], cwd=place) as server:
        assert server.ready["url"].startswith("http://127.0.0.1:")
        assert server.interrupt() == 0


@pytest.mark.parametrize("line", of_kind("kea ", but=("kea serve", "kea bench")))
def test_lines_of_kea_run(line: str, place: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    words = shlex.split(line.replace(ADDRESS, url))
    result = CliRunner().invoke(app, words[1:], input=ANSWERS.get(" ".join(words[:2])))
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.output


@pytest.mark.slow
@pytest.mark.parametrize("line", of_kind("kea bench"))
def test_lines_of_the_benchmark_run(line: str, place: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    result = CliRunner().invoke(app, shlex.split(line.replace(ADDRESS, url))[1:])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "tokens/s" in result.output


def test_the_client_of_openai_is_answered(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = (text for text in PYTHON if "from openai" in text)
    exec(compile(text.replace(ADDRESS, url), "README.md", "exec"), {})
    assert "kea" in capsys.readouterr().out.lower()


def test_the_application_runs_as_a_script(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(place / "application.py"), run_name="__main__")
    assert re.search(r"Mira Dalen in \w+", capsys.readouterr().out)


def test_the_embedded_model_is_called_what_it_is() -> None:
    assert re.search(r"test instrument and a first impression, not a product", README)


def test_the_picture_is_there() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures == ["docs/overview.svg"]
    assert (ROOT / "docs" / "overview.svg").read_text(encoding="utf-8").startswith("<svg")
    assert os.path.getsize(ROOT / "docs" / "overview.svg") < 20_000

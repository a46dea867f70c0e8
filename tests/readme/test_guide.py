"""The guide does what it says: all of its Python runs in one namespace, from top to bottom, against a server."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from typing import Any

import pytest

import kea
from kea.models import require_embedded_model
from tests.cli.support import serve
from tests.conftest import ROOT
from tools.markdown import walk_pieces

GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
PYTHON = [piece.text for piece in walk_pieces(GUIDE) if piece.language == "python"]
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    require_embedded_model()
    with serve("--port", "0", cwd=tmp_path_factory.mktemp("guide")) as server:
        yield server.url


def test_the_code_of_the_guide_runs(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = types.ModuleType("guide")
    names: dict[str, Any] = vars(module)
    assert len(PYTHON) == 8
    printed = []
    for text in PYTHON:
        exec(compile(text.replace(ADDRESS, url), "guide.md", "exec"), names)
        printed.append(capsys.readouterr().out)
    first, _, reading, many, _, cancelled, failed, status = printed
    assert "Who is where: {{notes}}\n<kea.Variable notes of find, submitted>\n" in first
    assert re.search(r"Tarn Osk in \w+", first)
    assert re.search(r"Mira Dalen in \w+", reading)
    assert names["same"] == "texts stay as they are"
    assert names["first"] in reading
    assert re.search(r"Edwin Thorle in \w+", many)
    assert len(names["texts"]) == 2
    assert [row.state.value for row in names["status"].calls] == ["done", "done", "cancelled"]
    assert cancelled == "call 'write' was cancelled.\n"
    assert failed.startswith("call 'find' did not run: its input 'text' failed in call 'write': call 'write' was")
    assert {"find done", "find[1] done", "write cancelled", "find failed"} <= {
        " ".join(line.split()[:2]) for line in status.splitlines()
    }
    with pytest.raises(kea.errors.Cancelled):
        names["session"].status()

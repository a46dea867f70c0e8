"""Reference pages follow the code: a page left behind, missing or made by nothing is found."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

import kea
from kea import errors
from kea.server import errors as server_errors
from tools.commands import load_commands
from tools.loading import SourceMissing
from tools.reference.__main__ import FOLDER, check_reference, write_reference
from tools.reference.commands import render_commands
from tools.reference.errors import render_errors
from tools.reference.metrics import create_blank, render_metrics
from tools.reference.page import Page, SourceWrong, first_sentence, format_table
from tools.reference.python import render_python

PAGE = Page("things.md", "Things", lambda: "one\n")


def raise_missing() -> str:
    raise SourceMissing("kea has no things")


def test_written_pages_are_up_to_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write_reference(tmp_path, (PAGE,)) == 0
    assert capsys.readouterr().out == "docs/reference/things.md: written\n"
    assert check_reference(tmp_path, (PAGE,)) == []
    assert "# Things\n\none\n" in (tmp_path / FOLDER / "things.md").read_text()


def test_a_page_behind_the_code_is_found(tmp_path: Path) -> None:
    write_reference(tmp_path, (PAGE,))
    (found,) = check_reference(tmp_path, (Page("things.md", "Things", lambda: "two"),))
    assert str(found) == "docs/reference/things.md: is behind the code; run `make docs` and commit it."


def test_missing_and_stray_pages_are_found(tmp_path: Path) -> None:
    write_reference(tmp_path, (PAGE,))
    other = Page("others.md", "Others", lambda: "x")
    assert [str(finding) for finding in check_reference(tmp_path, (other,))] == [
        "docs/reference/others.md: is not there; run `make docs` and commit it.",
        "docs/reference/things.md: is made by nothing; delete it.",
    ]


def test_a_page_that_cannot_be_made_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = Page("things.md", "Things", raise_missing)
    assert write_reference(tmp_path, (page,)) == 1
    assert capsys.readouterr().out == "docs/reference/things.md: cannot be made: kea has no things\n"
    assert [finding.message for finding in check_reference(tmp_path, (page,))] == ["cannot be made: kea has no things"]


def test_the_page_of_errors_has_every_error() -> None:
    text = render_errors()
    for cls in errors.all_error_classes():
        if cls.__module__ == "kea.errors":
            assert f"`{cls.code}`" in text or cls is errors.KeaError
    assert "| `EngineDied` | `engine_died` | 503 | `KeaError` | yes |" in text


def test_an_error_missing_from_the_drawn_tree_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "__doc__", (errors.__doc__ or "").replace("├── Conflict ", "├── Quarrel "))
    with pytest.raises(SourceWrong, match=r"differ: Conflict, Quarrel\."):
        render_errors()


def test_an_error_without_a_status_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = {cls: entry for cls, entry in server_errors.WIRE.items() if cls is not errors.Conflict}
    monkeypatch.setattr(server_errors, "WIRE", wire)
    with pytest.raises(SourceWrong, match=r"WIRE gives no HTTP status to Conflict\."):
        render_errors()


def test_the_page_of_metrics_has_names_kinds_and_labels() -> None:
    rows = render_metrics().splitlines()
    assert sum(row.startswith("| `kea:prefix_cache_hits_total` | counter | `model_name` |") for row in rows) == 1
    assert sum(row.startswith("| `kea:num_requests_running` | gauge | `model_name` |") for row in rows) == 1
    histogram = "| `kea:time_to_first_token_seconds` | histogram | `model_name`, `source` |"
    assert sum(row.startswith(histogram) for row in rows) == 1
    assert not any("_created" in row for row in rows)


def test_a_blank_is_made_of_any_record() -> None:
    @dataclass(frozen=True)
    class Inner:
        ratio: float
        names: tuple[str, ...]

    @dataclass(frozen=True)
    class Outer:
        count: int
        inner: Inner
        by_name: Mapping[str, int]
        error_ratio: float | None

    # Names of local classes cannot be looked up from the module, so the hints are given as types.
    Outer.__annotations__ = {"count": int, "inner": Inner, "by_name": Mapping[str, int], "error_ratio": float | None}
    assert create_blank(Outer) == Outer(1, Inner(1.0, ()), {}, None)


def test_the_page_of_commands_reads_a_typer_application(monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer(help="Serve applications.")
    group = typer.Typer(help="Measure.")
    app.add_typer(group, name="bench")

    @app.command()
    def serve(
        model: str = typer.Argument(..., help="A model | directory."), port: int = typer.Option(8000, help="The port.")
    ) -> None:
        """Serve a model."""

    @group.command("load")
    def load(secret: bool = typer.Option(False, "--secret", hidden=True)) -> None:
        """Load a server."""

    monkeypatch.setitem(sys.modules, "planted_cli", SimpleNamespace(app=app))
    tree = load_commands("planted_cli")
    monkeypatch.setattr("tools.reference.commands.load_commands", lambda: tree)
    assert list(tree.complain(["bench", "lod"])) == ["names `kea bench lod`; commands are load."]
    text = render_commands()
    assert "## `kea serve`\n\nServe a model.\n" in text
    assert "| `MODEL` | required | A model \\| directory. |" in text
    assert "| `--port` | `8000` | The port. |" in text
    assert "## `kea bench load`" in text
    assert "--secret" not in text


def test_the_page_of_the_python_api_has_every_public_name_with_its_members() -> None:
    text = render_python()
    for name in kea.__all__:
        item = getattr(kea, name)
        is_described = inspect.isclass(item) or inspect.isfunction(item)
        assert (f"\n\n## `kea.{name}`\n\n" in text) == is_described
    assert "**`async aget(criteria: Criteria | None = None, deadline_s: float | None = None) -> str`**\n> Await" in text
    assert "`kea.gather(*items: Any, criteria: Criteria | None = None, deadline_s: float | None = None) -> list" in text
    assert "**`astream(" not in text, "it is async"
    assert "| `blocked_s` | `float` |" in text
    assert "check_owned" not in text


def test_a_public_member_without_a_docstring_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kea.Session.map, "__doc__", None)
    with pytest.raises(SourceWrong, match=r"kea.Session.map has no docstring\."):
        render_python()


def test_a_hidden_member_that_is_gone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(kea.Session, "reach")
    with pytest.raises(SourceWrong, match=r"Session has not: \['reach'\]"):
        render_python()


def test_tables_and_sentences() -> None:
    assert format_table(["a"], [["x | y\nz"]]) == "| a |\n| --- |\n| x \\| y z |"
    assert first_sentence("Do it\n    well. Then rest.\n\nMore.") == "Do it well."
    assert first_sentence("No stop") == "No stop"
    assert first_sentence(None) == ""

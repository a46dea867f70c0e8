"""Application files: which are accepted, what `main` may look like, and the sentence for each that is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from kea.cli.application import load_application, load_functions
from kea.errors import InvalidRequest


def write(folder: Path, text: str, name: str = "application.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_main_is_found_and_arguments_are_checked(tmp_path: Path) -> None:
    application = load_application(write(tmp_path, "def main(session, name, times='1'):\n    return name\n"))
    assert not application.is_async
    application.check_arguments(["a"])
    application.check_arguments(["a", "b"])
    with pytest.raises(InvalidRequest, match=r"main\(session, name, times='1'\) .* a session and no arguments"):
        application.check_arguments([])
    with pytest.raises(InvalidRequest, match="a session and 3 arguments"):
        application.check_arguments(["a", "b", "c"])


def test_main_may_be_a_coroutine_function(tmp_path: Path) -> None:
    assert load_application(write(tmp_path, "async def main(session):\n    pass\n")).is_async


def test_an_application_may_import_its_neighbours_and_have_dataclasses(tmp_path: Path) -> None:
    write(tmp_path, "VALUE = 3\n", "neighbour_of_application.py")
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport neighbour_of_application\n"
        "@dataclass\nclass Thing:\n    value: int\n"
        "def main(session):\n    return Thing(neighbour_of_application.VALUE)\n"
    )
    assert load_application(write(tmp_path, text)).main(None).value == 3


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("application.py", "x = 1\n", "has no function main"),
        ("application.py", "main = 3\n", "has no function main"),
        ("application.txt", "def main(session): pass\n", "is no Python file"),
    ],
)
def test_what_is_no_application_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        load_application(write(tmp_path, text, name))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="There is no file"):
        load_application(tmp_path / "absent.py")


def test_errors_of_the_file_itself_are_passed_on(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        load_application(write(tmp_path, "1 / 0\n"))


def test_functions_are_those_that_the_file_defines(tmp_path: Path) -> None:
    text = (
        "from os.path import join\ndef shout(text):\n    return text.upper()\n"
        "def _hidden():\n    pass\nclass Thing:\n    pass\n"
    )
    functions = load_functions(write(tmp_path, text))
    assert {name: function("a") for name, function in functions.items()} == {"shout": "A"}


def test_a_file_without_functions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="defines no function"):
        load_functions(write(tmp_path, "x = 1\n"))

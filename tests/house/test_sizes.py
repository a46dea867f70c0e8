"""The size check counts as the house style says, and its exceptions cannot outlive their reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_sizes import check_sizes, create_report

LONG_BODY = "def long():\n" + '    """Not counted.\n\n    Nor this.\n    """\n' + "    x = 1\n\n" * 51
ENTRY = '[[exception]]\npath = "src/kea/a.py"\nname = "long"\nrule = "body"\nlimit = 60\nreason = "a table"\n'


def plant(root: Path, text: str, exceptions: str = "") -> list[str]:
    (root / "src/kea").mkdir(parents=True)
    (root / "src/kea/a.py").write_text(text, encoding="utf-8")
    (root / "tools").mkdir()
    (root / "tools/exceptions.toml").write_text(exceptions, encoding="utf-8")
    return [str(finding) for finding in check_sizes(root)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LONG_BODY, ["src/kea/a.py:1: long has 51 lines in its body; the limit is 50."]),
        (LONG_BODY.replace("    x = 1\n\n", "", 1), []),
        ("x = 1\n" * 401, ["src/kea/a.py: the file has 401 lines; the limit is 400."]),
        ("x = 1\n" * 400, []),
        ("def f(a, b, /, c, d, e, f): ...\n", ["src/kea/a.py:1: f has 6 positional parameters; the limit is 5."]),
        ("def f(a, b, c, d, e, *args, f, g, **rest): ...\n", []),
        ("class C:\n    def f(self, a, b, c, d, e): ...\n", []),
        (
            "class C:\n    @staticmethod\n    def f(a, b, c, d, e, f): ...\n",
            ["src/kea/a.py:3: C.f has 6 positional parameters; the limit is 5."],
        ),
        (
            "class BigConfig:\n" + "".join(f"    x{i}: int\n" for i in range(13)),
            ["src/kea/a.py:1: BigConfig has 13 fields; the limit is 12."],
        ),
        ("class Big:\n" + "".join(f"    x{i}: int\n" for i in range(13)), []),
    ],
)
def test_limits(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert plant(tmp_path, text) == expected


def test_nested_functions_are_measured_by_their_full_name(tmp_path: Path) -> None:
    found = plant(tmp_path, "class C:\n    def f(self):\n        def g(a, b, c, d, e, f): ...\n")
    assert found == ["src/kea/a.py:3: C.f.g has 6 positional parameters; the limit is 5."]


def test_a_named_exception_raises_one_limit(tmp_path: Path) -> None:
    assert plant(tmp_path, LONG_BODY, ENTRY) == []


@pytest.mark.parametrize(
    ("text", "entry", "expected"),
    [
        (LONG_BODY, ENTRY.replace("60", "50"), "long has 51 lines in its body; the limit is 50."),
        ("x = 1\n", ENTRY, "long (body) is not there; delete its entry."),
        ("def long():\n    x = 1\n", ENTRY, "long (body) keeps the usual limit of 50; delete its entry."),
        ("x = 1\n", ENTRY.replace('reason = "a table"\n', ""), "lacks reason."),
        ("x = 1\n", ENTRY.replace("a table", " "), "gives no reason."),
        ("x = 1\n", ENTRY.replace('"body"', '"girth"'), "has rule 'girth'; rules are body, file, positional, fields."),
        ("x = 1\n", ENTRY.replace("60", '"60"'), "has limit '60'; a limit is a whole number."),
        ("x = 1\n", "[[exception", "is not valid TOML"),
    ],
)
def test_a_wrong_or_needless_exception_is_found(tmp_path: Path, text: str, entry: str, expected: str) -> None:
    found = plant(tmp_path, text, entry)
    assert len(found) == 1, found
    assert expected in found[0]


def test_the_report_has_a_line_per_folder(tmp_path: Path) -> None:
    plant(tmp_path, "def f():\n    return 1\n\n\ndef g():\n    x = 1\n    y = 2\n    return x + y\n")
    header, row = create_report(tmp_path).splitlines()
    assert header.split() == ["folder", "files", "lines", "functions", "median", "p90", "longest"]
    assert row.split() == ["src/kea", "1", "8", "2", "2", "1", "3", "g"]

"""Imports of the package and pyproject.toml agree, and the check sees where they would not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_dependencies import check_dependencies

PROJECT = """
[project]
dependencies = ["torch>=2,<3", "prometheus-client", "Jinja2"]
[project.optional-dependencies]
rag = ["faiss-cpu>=1"]
dev = ["pytest"]
"""
USES = "import torch.nn, sys\nfrom prometheus_client import Counter\nfrom kea.types import Sampling\n"


def plant(root: Path, text: str) -> list[str]:
    (root / "src/kea").mkdir(parents=True)
    (root / "src/kea/a.py").write_text(USES + text)
    (root / "pyproject.toml").write_text(PROJECT)
    return [str(finding) for finding in check_dependencies(root)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import anyio\n", "src/kea/a.py:4: imports 'anyio', which pyproject.toml declares neither"),
        ("def f():\n    import anyio\n", "src/kea/a.py:5: imports 'anyio', which pyproject.toml declares neither"),
        ("from faiss import Index\n", "src/kea/a.py:4: imports 'faiss' when it loads; it belongs to an extra"),
        ("def f():\n    import pytest\n", "src/kea/a.py:5: imports 'pytest', which pyproject.toml declares neither"),
        ("import triton\n", "src/kea/a.py:4: imports 'triton', which pyproject.toml declares neither"),
    ],
)
def test_an_undeclared_import_is_found(tmp_path: Path, text: str, expected: str) -> None:
    (found,) = plant(tmp_path, text)
    assert found.startswith(expected)


def test_extras_may_be_imported_late_or_for_types(tmp_path: Path) -> None:
    text = "def f():\n    import faiss\n    import triton\nif TYPE_CHECKING:\n    import faiss\n"
    assert plant(tmp_path, text) == []


def test_a_dependency_that_nothing_uses_is_found(tmp_path: Path) -> None:
    (tmp_path / "src/kea").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    found = [str(finding) for finding in check_dependencies(tmp_path)]
    expected = "pyproject.toml: declares '{}', which the package does not import; take it out."
    assert found == [expected.format("prometheus_client"), expected.format("torch")]

"""The public names of `kea` are permanent: the reference lists them, and each is found."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import kea
from tools.findings import ROOT

PAGE = ROOT / "docs" / "reference" / "names.md"


def test_every_name_of_the_reference_is_there_and_no_other() -> None:
    names = re.findall(r"^\| `kea\.(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {"connect", "function", "Session"} <= set(names)
    assert sorted(kea.__all__) == dir(kea) == sorted(names)
    for name in names:
        assert getattr(kea, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kea.nothing


def test_writing_an_application_loads_neither_service_nor_http() -> None:
    code = "import sys, kea; [getattr(kea, name) for name in kea.__all__]; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert set(result.stdout.split()) & {"torch", "kea.service", "kea.engine", "httpx2", "pydantic"} == set()


def test_importing_kea_alone_loads_nothing_of_it() -> None:
    code = "import sys, kea; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert {name for name in result.stdout.split() if name.startswith("kea")} == {"kea"}

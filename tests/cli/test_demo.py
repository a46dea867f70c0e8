"""The demo: its graph, what it shows, what it shares; and that a copy of it is an application like any other."""

from __future__ import annotations

import json
from pathlib import Path

from kea.cli.demo import FILES, FOLDER
from tests.cli.support import Served, kea


def test_the_demo_runs_and_shares_the_beginning_of_its_prompts(embedded_model: Path, tmp_path: Path) -> None:
    result = kea("demo", "--json", str(tmp_path / "timeline.json"))
    assert result.returncode == 0, result.stderr
    assert "From The Woman in White by Wilkie Collins" in result.stdout
    calls = json.loads((tmp_path / "timeline.json").read_text())["calls"]
    assert [call["name"] for call in calls] == [*(f"summarise[{idx}]" for idx in range(4)), "merge"] + ["ask"] * 4
    assert {call["state"] for call in calls} == {"done"}
    assert sorted(calls[4]["reads"]) == sorted(call["writes"][0] for call in calls[:4])  # the fan-in
    cached = sorted(call["cached_tokens"] for call in calls[5:])
    assert min(cached[1:]) > 200  # the passages are read once
    assert all(f"summarise[{idx}]" in result.stdout for idx in range(4))
    assert "9 calls in" in result.stdout
    assert max(call["total_s"] for call in calls) < 100


def test_a_copy_of_the_demo_runs_on_a_server(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    copied = kea("demo", "--copy", str(folder))
    assert copied.returncode == 0, copied.stderr
    assert [(folder / name).read_bytes() for name in FILES] == [(FOLDER / name).read_bytes() for name in FILES]
    again = kea("demo", "--copy", str(folder))
    assert again.returncode == 2
    assert "is there already; nothing is overwritten" in again.stderr


def test_the_excerpt_names_its_source() -> None:
    head = (FOLDER / "excerpt.txt").read_text(encoding="utf-8").split("\n\n")[0]
    for words in ("The Woman in White", "Wilkie Collins", "1859", "public domain"):
        assert words in head

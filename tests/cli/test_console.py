"""The terminal's view of loading, where there is no terminal."""

from __future__ import annotations

import time

import pytest
from rich.console import Console

from kea.cli import console
from kea.cluster.base import Loading


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(console, "err", Console(force_terminal=False))
    monkeypatch.setattr(console.err, "print", lines.append)
    return lines


def test_a_stage_that_takes_long_is_named_in_a_log(printed: list[str]) -> None:
    with console.LoadingView("Loading it", long_stage_s=0.01) as view:
        view.show(Loading("check", 0.0))
        deadline = time.monotonic() + 10
        while len(printed) < 2 and time.monotonic() < deadline:
            view.show(Loading("check", 0.0))  # again: it is still the same stage
            time.sleep(0.005)
    assert printed == ["Loading it", f"Loading it: {console.STAGES['check']}"]


def test_short_stages_are_not_named(printed: list[str]) -> None:
    with console.LoadingView("Loading it", long_stage_s=3600.0) as view:
        for stage in ("weights", "check"):
            view.show(Loading(stage, 0.5))
        late = view._late
    assert printed == ["Loading it"]
    assert late is not None
    late.join(timeout=10)
    assert not late.is_alive()

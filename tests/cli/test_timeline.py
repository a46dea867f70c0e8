"""The drawing of a timeline: what stands in its table, and that its bars show the phases at the right places."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kea.cli.labels import format_seconds, label_calls
from kea.cli.timeline import draw_timeline
from kea.program.status import CallRow, CallState, SessionStatus


def row(
    call_id: str, name: str = "write", *, submitted_s: float = 0.0, phases: tuple[float, ...] = (), **more: object
) -> CallRow:
    blocked_s, waiting_s, prefill_s, decode_s = phases or (0.0, 0.0, 0.0, 1.0)
    values: dict[str, object] = {
        "id": call_id,
        "name": name,
        "state": CallState.DONE,
        "submitted_s": submitted_s,
        "blocked_s": blocked_s,
        "waiting_s": waiting_s,
        "prefill_s": prefill_s,
        "decode_s": decode_s,
        "total_s": blocked_s + waiting_s + prefill_s + decode_s,
        "prompt_tokens": 1000,
        "cached_tokens": 250,
        "output_tokens": 7,
        "reads": (),
        "writes": (),
        "num_attempts": 1,
        "engine": 0,
        "error": None,
    }
    return CallRow(**values | more)  # type: ignore[arg-type]


def draw(*rows: CallRow, width: int = 90, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    console = Console(file=file, width=width, legacy_windows=False)
    console.print(draw_timeline(SessionStatus(1, "", "", 9.0, 0, 0, rows), console))
    file.flush()
    raw = file.buffer.getvalue()
    return str(raw.decode(encoding))


def bar_of(text: str, label: str) -> str:
    """Return the cells of a call's bar: the second line that begins with its label."""
    lines = [line for line in text.splitlines() if line.startswith(label + " ")]
    return lines[1].removeprefix(label).strip(" \n")


def test_a_line_per_call_with_its_times_and_tokens() -> None:
    text = draw(
        row("a", "plan", phases=(0.0, 0.012, 0.25, 1.5)),
        row("b", "code", phases=(1.762, 0.0, 0.02, 12.0), total_s=13.8),
    )
    assert [line.split() for line in text.splitlines()[:3]] == [
        ["call", "blocked", "waiting", "other", "prefill", "decode", "total", "prompt", "cached", "output"],
        ["plan", "-", "12", "ms", "-", "250", "ms", "1.50", "s", "1.76", "s", "1,000", "250", "7"],
        ["code", "1.76", "s", "-", "18", "ms", "20", "ms", "12.0", "s", "13.8", "s", "1,000", "250", "7"],
    ]
    summary = "2 calls in 13.8 s: 2,000 prompt tokens, 500 of them (25%) already in memory; 14 tokens written."
    assert summary in " ".join(text.split())


def test_bars_show_the_phases_in_proportion() -> None:
    text = draw(row("a", phases=(4.0, 2.0, 1.0, 3.0)), width=len("write") + 3 + 100)
    assert bar_of(text, "write") == "·" * 40 + "░" * 20 + "▒" * 10 + "█" * 30


def test_what_the_phases_leave_of_the_total_is_drawn() -> None:
    text = draw(row("a", phases=(4.0, 2.0, 1.0, 2.0), total_s=10.0), width=len("write") + 3 + 100)
    assert bar_of(text, "write") == "·" * 40 + "░" * 20 + "╌" * 10 + "▒" * 10 + "█" * 20


@pytest.mark.parametrize("width", [40, 60, 80])
def test_nothing_is_cut_where_it_is_narrow(width: int) -> None:
    calls = [row(f"c{idx}", "summarise_the_letters", phases=(9.0, 0.1, 0.1, 0.5)) for idx in range(3)]
    text = draw(*calls, width=width)
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    for title in ("blocked", "waiting", "other", "prefill", "decode", "total", "prompt", "cached", "output"):
        assert title in words
    assert words.count("1,000") == 3
    assert "other: to the engine and back" in text


def test_a_later_call_begins_later() -> None:
    text = draw(row("a", "first"), row("b", "second", submitted_s=1.0), width=len("second") + 3 + 100)
    assert bar_of(text, "first") == "█" * 50
    line = [line for line in text.splitlines() if line.startswith("second")][1]
    assert line == "second  " + " " * 50 + "█" * 50


def test_a_short_call_is_still_seen() -> None:
    text = draw(
        row("a", "long", phases=(0.0, 0.0, 0.0, 10.0)), row("b", "short", submitted_s=5.0, phases=(0, 0, 0, 0.01))
    )
    assert "█" in bar_of(text, "short")


def test_a_terminal_without_unicode_gets_ascii() -> None:
    text = draw(row("a", phases=(4.0, 2.0, 1.0, 3.0)), width=len("write") + 3 + 100, encoding="ascii")
    assert bar_of(text, "write") == "." * 40 + "-" * 20 + "=" * 10 + "#" * 30


def test_failed_calls_are_marked() -> None:
    assert bar_of(draw(row("a", state=CallState.FAILED)), "write").endswith("█ failed")


def test_no_calls() -> None:
    assert draw() == "No calls were made.\n"


def test_long_names_are_cut() -> None:
    text = draw(row("a", "a_function_with_a_very_long_name"))
    assert "a_function_with_a_very.." in text
    assert max(map(len, text.splitlines())) <= 90


def test_calls_of_one_function_are_numbered() -> None:
    labels = label_calls([row("a", "map"), row("b", "map"), row("c", "merge")])
    assert labels == {"a": "map 1", "b": "map 2", "c": "merge"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "-"),
        (0.0004, "-"),
        (0.0006, "1 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (9.99, "9.99 s"),
        (61.25, "61.2 s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text

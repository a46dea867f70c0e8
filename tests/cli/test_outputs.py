"""Outputs in the terminal: blocks where there is none, living lines and wrapped blocks where there is one."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from kea.cli.outputs import OutputView


def piped(width: int = 60) -> Console:
    return Console(file=io.StringIO(), width=width, soft_wrap=True)


def terminal(width: int = 60) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, no_color=True, _environ={"TERM": "xterm"})


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_pipe_gets_each_output_once_when_it_is_finished() -> None:
    console = piped()
    with OutputView(console) as view:
        view.write("a", "plan", "first ", 1.0)
        view.write("b", "code", "x" * 100, 1.0)
        assert text_of(console) == ""
        view.write("a", "plan", "part", 1.5)
        view.finish("a", "plan", 2.0)
        view.finish("b", "code", 2.0)
    assert text_of(console) == f"plan  written in 1.00 s  first part\ncode  written in 1.00 s\n  {'x' * 100}\n"


def test_an_output_waits_for_the_end_of_the_applications_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Both print to standard output, and the application streams: `print(piece, end="")`."""
    with OutputView(Console(width=60, soft_wrap=True)) as view:
        sys.stdout.write("Once")
        view.write("a", "plan", "first", 0.0)
        view.finish("a", "plan", 1.0)
        sys.stdout.write(" upon")
        view.fail("b", "code", "It broke.")
        sys.stdout.write(" a time\n")
        view.finish("c", "last", 2.0)
        sys.stdout.write("the end")
        view.finish("d", "more", 2.0)
    sys.stdout.write("afterwards\n")
    assert capsys.readouterr().out.splitlines() == [
        "Once upon a time",
        "plan  written in 1.00 s  first",
        "code  failed  It broke.",
        "last  written at once  (empty)",
        "the end",
        "more  written at once  (empty)",
        "afterwards",
    ]


def test_lines_stay_lines() -> None:
    console = piped()
    with OutputView(console) as view:
        view.write("a", "code", "\ndef f():\n    return 1\n\n", 0.0)
        view.finish("a", "code", 0.5)
    assert text_of(console) == "code  written in 500 ms\n  def f():\n      return 1\n"


def test_an_empty_output_is_told() -> None:
    console = piped()
    with OutputView(console) as view:
        view.finish("a", "plan", 2.0)
    assert text_of(console) == "plan  written at once  (empty)\n"


def test_a_failure_shows_what_was_written_and_why_there_is_no_more() -> None:
    console = piped()
    with OutputView(console) as view:
        view.write("a", "plan", "half a", 0.0)
        view.fail("a", "plan", "The engine died.")
        view.fail("b", "code", "Its input failed.")
    assert text_of(console) == "plan  failed\n  half a\n  The engine died.\ncode  failed  Its input failed.\n"


def test_quiet_shows_failures_only() -> None:
    console = piped()
    with OutputView(console, is_quiet=True) as view:
        view.write("a", "plan", "text", 0.0)
        view.finish("a", "plan", 1.0)
        view.fail("b", "code", "why")
    assert text_of(console) == "code  failed  why\n"


def test_a_terminal_shows_the_newest_words_while_they_are_written() -> None:
    console = terminal()
    with OutputView(console) as view:
        view.write("a", "plan", "many words " * 20 + "the newest", 0.0)
        view.finish("b", "code", 0.1)  # printing draws the lines at the bottom anew
        assert "plan  …" in text_of(console)
        assert "the newest" in text_of(console)


def test_a_terminal_wraps_long_outputs_behind_an_indent() -> None:
    console = terminal(width=40)
    with OutputView(console) as view:
        view.write("a", "plan", "word " * 20, 0.0)
        view.finish("a", "plan", 1.0)
    lines = [line for line in text_of(console).splitlines() if "word word" in line]
    assert lines
    assert all(len(line) <= 40 for line in lines[-2:])


def test_many_outputs_do_not_fill_the_screen() -> None:
    console = terminal()
    with OutputView(console) as view:
        for number in range(30):
            view.write(str(number), f"call {number}", "text", 0.0)
        view.finish("0", "call 0", 1.0)
        assert "and 17 more" in text_of(console)


def test_what_a_model_writes_does_not_steer_the_terminal() -> None:
    console = piped()
    with OutputView(console) as view:
        view.write("a", "plan", "a\x1b[2Jb\x07c\x9bd", 0.0)
        view.finish("a", "plan", 1.0)
    assert text_of(console) == "plan  written in 1.00 s  a[2Jbcd\n"

"""What the two commands have in common at their ends: results, errors, exit statuses, and the signal to end.

Knows no benchmark. Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer
from rich.console import Console, RenderableType
from rich.measure import Measurement

from kea.errors import InvalidRequest, KeaError

EXIT_NOTHING, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
_WIDEST = 10_000


def print_result(result: RenderableType) -> None:
    """Print to standard output; where that is no terminal, as wide as the widest line: nothing there is cut."""
    console = Console()
    if not console.is_terminal:
        free = console.options.update(max_width=_WIDEST)
        console.width = max(console.width, Measurement.get(console, free, result).maximum)
    console.print(result)


def exit_with(error: KeaError) -> typer.Exit:
    """Tell an error in a sentence; return what ends the command with the status that belongs to it."""
    notes = Console(stderr=True, soft_wrap=True, highlight=False)
    notes.print("[bold red]error:[/]", end=" ")
    notes.print(str(error), markup=False)
    return typer.Exit(EXIT_USAGE if isinstance(error, InvalidRequest) else EXIT_NOTHING)


@contextmanager
def ending_as_by_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that the processes that it started end with it."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

"""Variables in the terminal while they are written. Knows no session: it is told of pieces and ends.

On a terminal, the lines at the bottom show the newest words of every variable that is being written; what is finished
is printed above, whole. Elsewhere (a pipe, a file) each variable is printed once, when it is finished, and never inside
a line that the application has begun to print.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from kea.cli.console import printable
from kea.cli.labels import format_seconds
from kea.cli.lines import SharedLines

REFRESH_PER_S = 15
MAX_LIVE_LINES = 12
INDENT = 2
SHOWN_S = 0.0005


@dataclass(slots=True)
class _Open:
    """A variable that is being written."""

    label: str
    began_s: float
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class OutputView:
    """Use it as a context manager around the run. `clock_s` is read by the caller and passed in as `now_s`."""

    def __init__(self, console: Console, *, is_quiet: bool = False) -> None:
        self._console = console
        self._is_quiet = is_quiet
        self._open: dict[str, _Open] = {}
        self._live = Live(get_renderable=self._draw, console=console, transient=True, refresh_per_second=REFRESH_PER_S)
        self._stack = ExitStack()
        self._shared: SharedLines | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._is_quiet:
            self._live.start()
        elif self._console.file is sys.stdout:
            self._shared = SharedLines(sys.stdout)
            self._stack.enter_context(redirect_stdout(cast("TextIO", self._shared)))
            self._stack.callback(self._shared.end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        self._stack.close()
        self._shared = None

    def write(self, variable_id: str, label: str, piece: str, now_s: float) -> None:
        """Append a piece to a variable, which begins with its first piece."""
        self._open.setdefault(variable_id, _Open(label, now_s)).pieces.append(printable(piece))

    def finish(self, variable_id: str, label: str, now_s: float) -> None:
        """Print the whole variable: it is ready."""
        variable = self._open.pop(variable_id, None) or _Open(label, now_s)
        if not self._is_quiet:
            head = Text.assemble((label, "bold cyan"), "  ", (_time(now_s - variable.began_s), "dim"))
            self._print(head, variable.text.strip("\n") or "(empty)")

    def fail(self, variable_id: str, label: str, reason: str) -> None:
        """Print what there is of the variable, and why there is no more; also when quiet."""
        variable = self._open.pop(variable_id, None)
        written = [] if variable is None else [variable.text]
        self._print(Text.assemble((label, "bold red"), "  ", ("failed", "dim")), "\n".join([*written, reason]))

    def _print(self, head: Text, body: str) -> None:
        """Print a short text beside its head, a longer one below."""
        if self._shared is not None:
            with self._console.capture() as block:
                self._layout(head, body)
            self._shared.put(block.get())
        else:
            self._layout(head, body)

    def _layout(self, head: Text, body: str) -> None:
        if self._live.is_started:
            self._live.refresh()  # what is printed now must not stay in the lines at the bottom as well
        if "\n" not in body and len(head) + INDENT + len(body) < self._console.width:
            self._console.print(Text.assemble(head, " " * INDENT, body))
            return
        text = Text(body)
        room = self._console.width - INDENT - 1
        lines = text.wrap(self._console, room) if self._console.is_terminal else text.split(allow_blank=True)
        for line in lines:
            line.rstrip()
        self._console.print(Text("\n").join([head, *(Text(" " * INDENT) + line for line in lines)]))

    def _draw(self) -> RenderableType:
        """The newest words of what is being written, one line each."""
        lines = [self._line(variable) for variable in self._open.values()]
        hidden = len(lines) - MAX_LIVE_LINES
        if hidden > 0:
            lines = [*lines[:MAX_LIVE_LINES], Text(f"and {hidden} more", style="dim")]
        return Group(*lines)

    def _line(self, variable: _Open) -> Text:
        room = max(10, self._console.width - len(variable.label) - 3)
        words = " ".join(variable.text[-2 * room :].split())
        shown = words if len(words) < room else "…" + words[-(room - 2) :]
        return Text.assemble((variable.label, "cyan"), "  ", shown, no_wrap=True, overflow="crop")


def _time(written_s: float) -> str:
    """Tell how long the variable was written: from its first piece to its end. One that came whole took no time."""
    return f"written in {format_seconds(written_s)}" if written_s >= SHOWN_S else "written at once"

"""Progress of a run on a terminal, and as plain lines where there is none. Owns no figure of the result."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from kea.bench.load.client import RequestResult
from kea.bench.load.plan import Planned

_LINE_INTERVAL_S = 5.0


class ProgressView:
    """Shows what the run is doing; lives as long as the run, and leaves the terminal clean."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._title = ""
        self._total = self._sent = self._ended = self._failed = self._tokens = 0
        self._next_line_s = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
            # Drawn rarely: the drawing thread takes time from the client that measures.
            self._bar = Progress(
                *columns, TimeElapsedColumn(), console=self._console, transient=True, refresh_per_second=4
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def phase(self, text: str) -> None:
        self._begin(text, 0)

    def round_began(self, server: str, round_idx: int, num_requests: int) -> None:
        self._begin(f"round {round_idx + 1}, {server}", num_requests)

    def sent(self, planned: Planned) -> None:
        self._sent += 1
        self._show()

    def ended(self, result: RequestResult) -> None:
        self._ended += 1
        self._failed += result.failure is not None
        self._tokens += result.output_tokens
        self._show()

    def _begin(self, title: str, total: int) -> None:
        self._title, self._total = title, total
        self._sent = self._ended = self._failed = self._tokens = 0
        if self._bar is None:
            self._console.print(f"{title} ...", style="dim", highlight=False)
            self._next_line_s = time.monotonic() + _LINE_INTERVAL_S
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(title, total=total or None, state="")

    def _state(self) -> str:
        failed = f", {self._failed} failed" if self._failed else ""
        under_way = self._sent - self._ended
        return f"{self._ended} of {self._total} ended, {under_way} under way{failed}, {self._tokens:,} tokens"

    def _show(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._ended, state=self._state())
        elif self._bar is None and time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + _LINE_INTERVAL_S
            self._console.print(f"{self._title}: {self._state()}", style="dim", highlight=False)


class TurnsView:
    """Shows which system is measured at what, out of how many turns. Used with a block, like `ProgressView`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._num_done = self._total = 0
        self._next_line_s = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
            self._bar = Progress(
                *columns, TimeElapsedColumn(), console=self._console, transient=True, refresh_per_second=1
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=None, state="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def phase(self, text: str) -> None:
        """Show what comes before the turns."""
        self._show(text, always=True)

    def begin(self, num_turns: int) -> None:
        self._total = num_turns

    def turn(self, text: str) -> None:
        """Begin the next turn; without a terminal a line every few seconds tells of it."""
        self._show(f"{text} ({self._num_done} of {self._total} done)")
        self._num_done += 1

    def _show(self, text: str, *, always: bool = False) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text, completed=self._num_done, total=self._total or None)
        elif always or time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + _LINE_INTERVAL_S
            self._console.print(f"{text} ...", style="dim", highlight=False)

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
_DRAWN_PER_S = 2  # drawing takes time from what is measured


class _View:
    """A bar on a terminal, else a line every few seconds. Lives as long as the run and leaves the terminal clean."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._next_line_s = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
            self._bar = Progress(
                *columns, TimeElapsedColumn(), console=self._console, transient=True, refresh_per_second=_DRAWN_PER_S
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _begin(self, title: str, total: int) -> None:
        """Show a new bar, or a line at once; a `total` of 0 is not known."""
        if self._bar is None:
            self._print(f"{title} ...")
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(title, total=total or None, state="")

    def _go_on(self, title: str, num_done: int, state: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=title, completed=num_done, state=state)
        elif self._bar is None and time.monotonic() >= self._next_line_s:
            self._print(f"{title}: {state}")

    def _print(self, text: str) -> None:
        self._next_line_s = time.monotonic() + _LINE_INTERVAL_S
        self._console.print(text, style="dim", highlight=False, soft_wrap=True)


class ProgressView(_View):
    """Shows the requests of a round."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._title = ""
        self._total = self._sent = self._ended = self._failed = self._tokens = 0

    def phase(self, text: str) -> None:
        self._new_round(text, 0)

    def round_began(self, server: str, round_idx: int, num_requests: int) -> None:
        self._new_round(f"round {round_idx + 1}, {server}", num_requests)

    def _new_round(self, title: str, num_requests: int) -> None:
        self._title, self._total = title, num_requests
        self._sent = self._ended = self._failed = self._tokens = 0
        self._begin(title, num_requests)

    def sent(self, planned: Planned) -> None:
        self._sent += 1
        self._go_on(self._title, self._ended, self._state())

    def ended(self, result: RequestResult) -> None:
        self._ended += 1
        self._failed += result.failure is not None
        self._tokens += result.output_tokens
        self._go_on(self._title, self._ended, self._state())

    def _state(self) -> str:
        failed = f", {self._failed} failed" if self._failed else ""
        under_way = self._sent - self._ended
        return f"{self._ended} of {self._total} ended, {under_way} under way{failed}, {self._tokens:,} tokens"


class TurnsView(_View):
    """Shows which system is measured at what, out of how many turns."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._num_done = self._total = 0

    def phase(self, text: str) -> None:
        """Show what comes before the turns."""
        self._begin(text, 0)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._print(text)

    def begin(self, num_turns: int) -> None:
        self._total = num_turns
        self._begin("measuring", num_turns)

    def turn(self, text: str) -> None:
        """Begin the next turn."""
        self._go_on(text, self._num_done, f"{self._num_done} of {self._total} done")
        self._num_done += 1

"""The terminal: where results and messages go, and the progress of loading a model. Knows no commands.

Results go to standard output, everything else to standard error, so that output can be piped.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status

from kea.cluster.base import Loading
from kea.errors import InvalidRequest

WIDTH_ELSEWHERE = 110
"""Columns where there is no terminal to ask, and COLUMNS does not say."""


def _create_console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, soft_wrap=True, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH_ELSEWHERE
    return console


out = _create_console(stderr=False)
err = _create_console(stderr=True)

# What a model writes must not steer the terminal: control characters but tab and line feed, and C1, are dropped.
_CONTROL = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def printable(text: str) -> str:
    """Return the text without characters that a terminal would obey."""
    return text.translate(_CONTROL)


def write_text(text: str) -> None:
    """Write a piece of a model's text to standard output as it is: no markup, no wrapping, at once."""
    out.file.write(printable(text))
    out.file.flush()


def check_writable(path: Path) -> None:
    """Raise `InvalidRequest` where `write_file` could not write; the file itself is left as it is."""
    with _failing_as_input(path):
        if _is_replaced(path):
            beside = _beside(path)
            beside.touch()
            beside.unlink()
        else:
            path.open("a").close()


def write_file(path: Path, text: str) -> None:
    """Write a whole file in place of the one before. Raises `InvalidRequest` where that cannot be done."""
    with _failing_as_input(path):
        if not _is_replaced(path):
            path.write_text(text, encoding="utf-8")
            return
        beside = _beside(path)
        try:
            beside.write_text(text, encoding="utf-8")
            beside.replace(path.resolve())
        finally:
            beside.unlink(missing_ok=True)


def _is_replaced(path: Path) -> bool:
    """Whether another file may take the place: a device or a pipe is written to."""
    return path.is_file() or not path.exists()


def _beside(path: Path) -> Path:
    path = path.resolve()
    return path.with_name(f".{path.name}.{os.getpid()}")


@contextmanager
def _failing_as_input(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror or error}.", param="json") from error


STAGES = {
    "download": "downloading",
    "weights": "reading the weights",
    "check": "checking; the first start compiles kernels, which can take a minute",
}


LONG_STAGE_S = 3.0


class LoadingView:
    """A spinner with what is being loaded. Lives as long as the loading.

    Where there is no terminal a line says that it began, and another one names each stage that takes longer than
    `LONG_STAGE_S`, in the moment in which it has: who reads the log of a first start learns what it waits for.
    """

    def __init__(self, title: str, long_stage_s: float = LONG_STAGE_S) -> None:
        self._title = title
        self._long_stage_s = long_stage_s
        self._stage = ""
        self._status: Status | None = None
        self._late: threading.Timer | None = None

    def __enter__(self) -> Self:
        if err.is_terminal:
            self._status = err.status(self._title)
            self._status.start()
        else:
            err.print(self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._begin_stage("")
        if self._status is not None:
            self._status.stop()

    def show(self, loading: Loading) -> None:
        """Show a stage; usable as the `on_loading` of an engine."""
        line = f"{self._title}: {STAGES.get(loading.stage, loading.stage)}"
        if self._status is not None:
            share = f" {loading.done_ratio:.0%}" if loading.done_ratio else ""
            self._status.update(f"{line}{share}")
        elif loading.stage != self._stage:
            self._begin_stage(loading.stage, line)

    def _begin_stage(self, stage: str, line: str = "") -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
        self._stage = stage
        if line:
            self._late = threading.Timer(self._long_stage_s, err.print, [line])
            self._late.daemon = True
            self._late.start()

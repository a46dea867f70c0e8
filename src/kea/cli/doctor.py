"""`kea doctor`: what this machine has and what Kea would use of it."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import typer
from rich.markup import escape
from rich.table import Table

from kea import __version__
from kea.cli.console import out

GIB = 2**30


class State(Enum):
    """THERE: can be used. ABSENT: Kea runs without it. PROBLEM: Kea cannot run here."""

    THERE = "there"
    ABSENT = "absent"
    PROBLEM = "problem"


MARKS = {State.THERE: "[green]✓[/]", State.ABSENT: "[dim]-[/]", State.PROBLEM: "[bold red]✗[/]"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    found: str
    meaning: str
    state: State = State.THERE


def doctor() -> None:
    """Tell what this machine has and what Kea would use.

    Exits with 1 if Kea cannot run here.
    """
    findings = list(_look())
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 3, 0, 0))
    for finding in findings:
        table.add_row(MARKS[finding.state], finding.name, escape(finding.found), f"[dim]{escape(finding.meaning)}[/]")
    out.print(f"[bold]kea {__version__}[/]")
    out.print(table, soft_wrap=False)
    if any(finding.state is State.PROBLEM for finding in findings):
        raise typer.Exit(1)


def _look() -> Iterator[Finding]:
    yield Finding("python", platform.python_version(), "3.11 or newer is needed", _need(sys.version_info >= (3, 11)))
    yield from _look_at_torch()
    yield _look_at_embedded_model()


def _need(is_met: bool) -> State:
    return State.THERE if is_met else State.PROBLEM


def _look_at_torch() -> Iterator[Finding]:
    import torch

    from kea.engine.machine import free_memory_bytes, num_cores

    yield Finding("torch", torch.__version__, "runs the models")
    yield Finding("transformers", importlib.metadata.version("transformers"), "defines the models")
    yield Finding("numba", importlib.metadata.version("numba"), "compiles the kernels of the CPU")
    yield Finding("cores", str(num_cores()), "threads of an engine on the CPU (--num-threads)")
    free = free_memory_bytes("cpu") / GIB
    yield Finding("free memory", f"{free:.1f} GiB", f"at most {free / 4:.1f} GiB for keys and values", _need(free >= 1))
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory / GIB
        yield Finding("GPU", f"{torch.cuda.get_device_name(0)}, {total:.0f} GiB", "used unless --device cpu is given")
    else:
        yield Finding("GPU", "none", "models run on the CPU", State.ABSENT)


def _look_at_embedded_model() -> Finding:
    from kea.errors import ModelLoadFailed
    from kea.models import require_embedded_model

    try:
        require_embedded_model()
    except ModelLoadFailed as error:
        return Finding("embedded model", "missing", error.message, State.PROBLEM)
    return Finding("embedded model", "installed", "what kea demo and kea serve without a model use")

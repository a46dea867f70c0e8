"""The timeline of a session in the terminal: a line per call with its times and tokens, then the same times as bars.

Knows no session and no engine: it draws the rows of a status.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from kea.cli.labels import format_seconds, label_calls
from kea.program.status import CallRow, CallState, SessionStatus

MAX_LABEL = 24
MIN_BAR = 10
MAX_BAR = 100
GAP = 2
TIMES = ("blocked", "waiting", "other", "prefill", "decode", "total")
"""Columns of times, the last one the sum of those before it."""
TOKENS = {"prompt": "prompt_tokens", "cached": "cached_tokens", "output": "output_tokens"}

Column = tuple[str, list[str]]


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of a call: the row's field with its duration, and how it is drawn."""

    name: str
    field: str
    mark: str
    ascii_mark: str
    style: str


# In the order in which a call passes through them.
PHASES = (
    Phase("blocked: inputs missing", "blocked_s", "·", ".", "dim"),
    Phase("waiting", "waiting_s", "░", "-", "yellow"),
    Phase("other: to the engine and back", "other_s", "╌", "~", "magenta"),
    Phase("prefill", "prefill_s", "▒", "=", "cyan"),
    Phase("decode", "decode_s", "█", "#", "green"),
)
STATE_STYLES = {CallState.FAILED: "bold red", CallState.CANCELLED: "yellow"}


def draw_timeline(status: SessionStatus, console: Console) -> RenderableType:
    """Return the timeline of a session, as wide as the console."""
    rows = status.calls
    if not rows:
        return Text("No calls were made.")
    labels = label_calls(rows)
    names = [_cut(labels[row.id]) for row in rows]
    bars = _bars(rows, names, console.width, is_ascii=not console.encoding.lower().startswith("utf"))
    tables = [part for table in _tables(rows, names, console.width) for part in (table, Text())]
    return Group(*tables, bars, Text(), _summary(rows))


def _cut(label: str) -> str:
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 2] + ".."


def _tables(rows: Sequence[CallRow], names: Sequence[str], width: int) -> Iterator[Table]:
    """Yield the columns in one table, or in as many as the width asks for, each with the names of the calls."""
    room = width - max(map(len, ("call", *names)))
    columns = list(_columns(rows))
    while columns:
        num_fitting = _num_fitting(columns, room)
        yield _table(rows, names, columns[:num_fitting])
        columns = columns[num_fitting:]


def _columns(rows: Sequence[CallRow]) -> Iterator[Column]:
    for title in TIMES:
        yield title, [format_seconds(getattr(row, f"{title}_s")) for row in rows]
    for title, field in TOKENS.items():
        yield title, [f"{getattr(row, field):,}" for row in rows]


def _num_fitting(columns: Sequence[Column], room: int) -> int:
    """Return how many columns stand side by side, at least one."""
    for num_fitting, (title, cells) in enumerate(columns):
        room -= GAP + max(map(len, (title, *cells)))
        if room < 0:
            return max(1, num_fitting)
    return len(columns)


def _table(rows: Sequence[CallRow], names: Sequence[str], columns: Sequence[Column]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    table.add_column("call", no_wrap=True, overflow="crop")
    for title, _ in columns:
        table.add_column(title, justify="right", no_wrap=True, overflow="crop")
    for idx, (row, name) in enumerate(zip(rows, names, strict=True)):
        table.add_row(Text(name, style=STATE_STYLES.get(row.state, "")), *(cells[idx] for _, cells in columns))
    return table


def _bars(rows: Sequence[CallRow], names: Sequence[str], width: int, *, is_ascii: bool) -> Text:
    label_width = max(map(len, names))
    mark_width = max((len(row.state.value) + 1 for row in rows if row.state in STATE_STYLES), default=0)
    bar_width = max(MIN_BAR, min(MAX_BAR, width - label_width - mark_width - 3))
    begin_s = min(row.submitted_s for row in rows)
    end_s = max(row.submitted_s + row.total_s for row in rows)
    cell_s = max(end_s - begin_s, 1e-9) / bar_width
    text = Text(no_wrap=True, overflow="crop")
    for row, name in zip(rows, names, strict=True):
        text.append(name.ljust(label_width) + "  ", style=STATE_STYLES.get(row.state, ""))
        for phase, count in _runs(row, begin_s, cell_s, bar_width):
            mark = " " if phase is None else phase.ascii_mark if is_ascii else phase.mark
            text.append(mark * count, style="" if phase is None else phase.style)
        text.append(
            f" {row.state.value}\n" if row.state in STATE_STYLES else "\n", style=STATE_STYLES.get(row.state, "")
        )
    scale = format_seconds(end_s - begin_s)
    text.append(" " * (label_width + 2) + "0" + scale.rjust(bar_width - 1) + "\n", style="dim")
    _append_legend(text, label_width + 2, width, is_ascii)
    return text


def _append_legend(text: Text, indent: int, width: int, is_ascii: bool) -> None:
    """Append what the marks mean, in as many lines as the width asks for."""
    used = 0
    indent = indent if indent + 3 + max(len(phase.name) for phase in PHASES) <= width else 0
    for phase in PHASES:
        label = f" {phase.name}"
        if used and used + GAP + 2 + len(label) > width:
            text.append("\n")
            used = 0
        gap = GAP if used else indent
        text.append(" " * gap)
        text.append((phase.ascii_mark if is_ascii else phase.mark) * 2, style=phase.style)
        text.append(label, style="dim")
        used += gap + 2 + len(label)


def _runs(row: CallRow, begin_s: float, cell_s: float, num_cells: int) -> Iterator[tuple[Phase | None, int]]:
    """Yield the cells of a bar as runs of one phase; None is outside the call, and left out behind it."""
    cells = [_phase_at(row, begin_s + (cell + 0.5) * cell_s, cell_s) for cell in range(num_cells)]
    while cells and cells[-1] is None:
        cells.pop()
    for phase, run in groupby(cells):
        yield phase, len(list(run))


def _phase_at(row: CallRow, time_s: float, cell_s: float) -> Phase | None:
    """Return the phase at a moment. A call shorter than a cell is drawn as one cell of its last phase."""
    if not row.submitted_s <= time_s:
        return None
    passed_s = time_s - row.submitted_s
    found = [phase for phase in PHASES if getattr(row, phase.field) > 0]
    for phase in found:
        passed_s -= getattr(row, phase.field)
        if passed_s < 0:
            return phase
    is_short = row.total_s < cell_s and time_s - row.submitted_s < cell_s
    return found[-1] if found and is_short else None


def _summary(rows: Sequence[CallRow]) -> Text:
    begin_s = min(row.submitted_s for row in rows)
    end_s = max(row.submitted_s + row.total_s for row in rows)
    prompt, cached = sum(row.prompt_tokens for row in rows), sum(row.cached_tokens for row in rows)
    share = f" ({cached / prompt:.0%})" if prompt else ""
    calls = "1 call" if len(rows) == 1 else f"{len(rows)} calls"
    return Text(
        f"{calls} in {format_seconds(end_s - begin_s)}: {prompt:,} prompt tokens, {cached:,} of them{share} "
        f"already in memory; {sum(row.output_tokens for row in rows):,} tokens written."
    )

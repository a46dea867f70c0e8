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
    return Group(_table(rows, names), Text(), bars, Text(), _summary(rows))


def _cut(label: str) -> str:
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 2] + ".."


def _table(rows: Sequence[CallRow], names: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("call", no_wrap=True, overflow="crop")
    for title in ("blocked", "waiting", "prefill", "decode", "total", "prompt", "cached", "output"):
        table.add_column(title, justify="right", no_wrap=True, overflow="crop")
    for row, name in zip(rows, names, strict=True):
        times = (row.blocked_s, row.waiting_s, row.prefill_s, row.decode_s, row.total_s)
        tokens = (row.prompt_tokens, row.cached_tokens, row.output_tokens)
        cells = [format_seconds(time_s) for time_s in times] + [f"{count:,}" for count in tokens]
        table.add_row(Text(name, style=STATE_STYLES.get(row.state, "")), *cells)
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
    _append_legend(text, label_width + 2, is_ascii)
    return text


def _append_legend(text: Text, indent: int, is_ascii: bool) -> None:
    for idx, phase in enumerate(PHASES):
        mark = phase.ascii_mark if is_ascii else phase.mark
        text.append(" " * (2 if idx else indent))
        text.append(mark * 2, style=phase.style)
        text.append(f" {phase.name}", style="dim")


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

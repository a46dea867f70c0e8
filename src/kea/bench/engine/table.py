"""How the result of `kea bench engine` looks on a terminal: figures by cell and system, then what they show.

Owns the layout only.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kea.bench.base import Report, Show
from kea.bench.engine.base import Precision
from kea.bench.engine.cells import ALONE, Cell
from kea.bench.engine.figures import Measured, bound_seconds, goodputs, medians, objective, seconds_of, values_of

_ABSENT = "-"
_MUCH_OTHER_WORK = 0.05
_BUSY = "Other processes took {:.0%} of the cores' time meanwhile: compare ratios only, and repeat on an idle machine."


def render_result(measured: Measured, report: Report) -> RenderableType:
    """Return the tables, what failed or was left out, and the machine's bounds."""
    return Group(_figures(measured), *_bounds(report), _shows(report), *_remarks(report))


def _figures(measured: Measured) -> Table:
    table = Table(title=f"Engine benchmark, {measured.shape.name}, medians of the rounds", title_justify="left")
    table.add_column("")
    labels = [peer.name for peer in measured.peers if peer.status == "measured"]
    precisions = sorted({Precision(label.split(" ")[1]) for label in labels if label.startswith("kea ")})
    for precision in precisions:
        table.add_column(f"bound {precision}", justify="right")
    for label in labels:
        table.add_column(label, justify="right")
    last = ""
    for cell in measured.cells:
        if last and cell.scenario != last:
            table.add_section()
        last = cell.scenario
        _add_cell(table, measured, cell, labels, precisions)
    return table


def _add_cell(table: Table, measured: Measured, cell: Cell, labels: list[str], precisions: list[Precision]) -> None:
    spell, unit = _spelling(cell)
    bounds = []
    for precision in precisions:
        known = bound_seconds(measured, cell, precision) if cell.scenario in ("decode", "prefill") else {}
        bounds.append(spell(statistics.median(known.values())) if known else _ABSENT)
    cells = []
    for label in labels:
        seconds = seconds_of(measured, label, cell.name)
        cells.append(spell(statistics.median(seconds.values())) if seconds else _ABSENT)
    if cell.scenario == "cache":
        table.add_row(f"{cell.name}, cold (ms)", *bounds, *cells)
        warm = [_median_ms(measured, label, cell.name, "warm_s") for label in labels]
        table.add_row(f"{cell.name}, warm (ms)", *bounds, *warm)
    elif cell.scenario == "lookup":
        for key, what in (("plain_s", "without guesses"), ("lookup_s", "with guesses")):
            spelled = [_median_ms(measured, label, cell.name, key) for label in labels]
            table.add_row(f"{cell.name}, {what} (ms)", *bounds, *spelled)
    elif cell.scenario in ("arrivals", "latency"):
        _add_other(table, measured, cell, labels, bounds)
    else:
        table.add_row(f"{cell.name} ({unit})", *bounds, *cells)


def _add_other(table: Table, measured: Measured, cell: Cell, labels: list[str], bounds: list[str]) -> None:
    if cell.scenario == "arrivals":
        _add_arrivals(table, measured, cell, labels, bounds)
    else:
        errors = [values_of(measured, label, cell.name, "median_error_ratio").values() for label in labels]
        spelled = [f"{100 * statistics.median(v[0] for v in one):.1f}" if one else _ABSENT for one in errors]
        table.add_row(f"{cell.name}, median error (%)", *bounds, *spelled)


def _add_arrivals(table: Table, measured: Measured, cell: Cell, labels: list[str], bounds: list[str]) -> None:
    times = [medians(measured, label, cell.name) for label in labels]
    for number, what in enumerate(("TTFT", "TPOT")):
        values = [None if one is None else one[number] for one in times]
        spelled = [_ABSENT if value is None else f"{1000 * value:,.1f}" for value in values]
        table.add_row(f"{cell.name}, {what} (ms)", *bounds, *spelled)
    found = objective(measured)
    if found is not None and cell.name != ALONE:
        rates = [goodputs(measured, label, cell.name, found[1]).values() for label in labels]
        spelled = [f"{statistics.median(one):.2f}" if one else _ABSENT for one in rates]
        table.add_row(f"{cell.name}, goodput (requests/s)", *bounds, *spelled)


def _spelling(cell: Cell) -> tuple[Callable[[float], str], str]:
    if cell.scenario in ("decode", "overhead") or cell.operation in ("decode", "shared"):
        return (lambda seconds: f"{cell.batch / seconds:,.1f}"), "tokens/s"
    if cell.scenario == "prefill":
        return (lambda seconds: f"{cell.context / seconds:,.0f}"), "tokens/s"
    if cell.scenario == "start":
        return (lambda seconds: f"{seconds:,.1f}"), "s"
    return (lambda seconds: f"{1000 * seconds:,.1f}"), "ms"


def _median_ms(measured: Measured, label: str, cell: str, key: str) -> str:
    values = [one for value in values_of(measured, label, cell, key).values() for one in value]
    return f"{1000 * statistics.median(values):,.1f}" if values else _ABSENT


def _bounds(report: Report) -> list[Text]:
    return [
        Text(f"{bound.name}: {bound.value:,.1f} {bound.unit} ({bound.note})", style="dim") for bound in report.bounds
    ]


def _shows(report: Report) -> Table:
    table = Table(title="What it shows (above 1 Kea is the faster one)", title_justify="left")
    for column in ("", "value", "goal", "holds", "rounds"):
        table.add_column(column, justify="left" if column in ("", "rounds") else "right")
    for show in report.shows:
        if show.value is None:
            continue
        table.add_row(show.name, _value(show), show.goal or "", _holds(show), show.note)
    return table


def _value(show: Show) -> str:
    return _ABSENT if show.value is None else f"{show.value:.2f} {show.unit}"


def _holds(show: Show) -> Text:
    if show.holds is None:
        return Text("")
    return Text("yes", style="green") if show.holds else Text("no", style="yellow")


def _remarks(report: Report) -> list[Text]:
    lines = [Text(f"{peer.name}: {peer.version}; {peer.note}", style="dim") for peer in report.peers if peer.version]
    num_missing = sum(show.value is None for show in report.shows)
    if num_missing:
        goals = f"{num_missing} goal{'s were' if num_missing > 1 else ' was'}"
        lines.append(Text(f"{goals} not measured in this run; --json lists them.", style="yellow"))
    lines += [Text(f"{one.peer}: {one.kind}, {one.message} ({one.count}x)", style="yellow") for one in report.failures]
    if (report.machine.other_share or 0.0) > _MUCH_OTHER_WORK:
        lines.append(Text(_BUSY.format(report.machine.other_share), style="yellow"))
    if report.interrupted:
        lines.append(Text("The run was interrupted; the figures are of what was finished by then.", style="yellow"))
    return lines

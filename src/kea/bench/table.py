"""How the result of `kea bench serve` looks on a terminal: one column per server, one per comparison.

Owns the layout only; every figure comes from `kea.bench.load.figures`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kea.bench.base import Report
from kea.bench.load.figures import Counts, Ratio, count, latencies_ms, rates_of, try_ratio
from kea.bench.serving import Measurement, Served
from kea.bench.statistics import Slo, spell_slo, summarize

_RATES = (
    ("request throughput (requests/s)", "request_throughput"),
    ("output throughput (tokens/s)", "output_throughput"),
    ("total throughput (tokens/s)", "total_throughput"),
    ("goodput (requests/s)", "goodput"),
)
_LATENCIES = (
    ("time to first token (TTFT)", "ttft"),
    ("time per output token after the first (TPOT)", "tpot"),
    ("gap between chunks (ITL)", "itl"),
    ("end to end (E2E)", "e2e"),
)
_ABSENT = "-"


def render_result(measured: Measurement, report: Report) -> RenderableType:
    """Return the table of figures with what failed and what the goals say below it."""
    table = Table(title="Serving benchmark", title_justify="left", show_lines=False)
    table.add_column("")
    for served in measured.served:
        table.add_column(served.target.name, justify="right")
    subject, *others = measured.served
    for other in others:
        table.add_column(f"{subject.target.name} against {other.target.name}", justify="right")
    _add_counts(table, measured)
    _add_rates(table, measured)
    _add_latencies(table, measured)
    return Group(table, *_remarks(measured, report))


def _add_counts(table: Table, measured: Measurement) -> None:
    rows: tuple[tuple[str, Callable[[Counts], int | None]], ...] = (
        ("requests answered", lambda counts: counts.answered),
        ("requests failed", lambda counts: counts.failed),
        ("requests unfinished or unsent", lambda counts: counts.interrupted + counts.unsent),
        ("input tokens", lambda counts: counts.input_tokens),
        ("of these cached", lambda counts: counts.cached_tokens),
        ("output tokens", lambda counts: counts.output_tokens),
    )
    counted = [count(served.rounds) for served in measured.served]
    for title, read in rows:
        values = [read(counts) for counts in counted]
        table.add_row(title, *(_ABSENT if value is None else f"{value:,}" for value in values))
    durations = (sum(one.duration_s for one in served.rounds) for served in measured.served)
    table.add_row("duration (s)", *(f"{duration_s:.2f}" for duration_s in durations), end_section=True)


def _add_rates(table: Table, measured: Measurement) -> None:
    rates = [rates_of(served.rounds, measured.slo) for served in measured.served]
    for title, figure in _RATES:
        if figure == "goodput" and not measured.slo.is_given:
            continue
        cells = [f"{one[figure]:.2f}" for one in rates]
        table.add_row(title, *cells, *_ratios(figure, measured.served, measured.slo))


def _add_latencies(table: Table, measured: Measurement) -> None:
    latencies = [latencies_ms(served.rounds) for served in measured.served]
    for title, figure in _LATENCIES:
        table.add_section()
        table.add_row(Text(title, style="bold"))
        summaries = [summarize(one[figure]) for one in latencies]
        table.add_row("  mean (ms)", *(_ms(summary.mean) for summary in summaries))
        ratios = _ratios(figure, measured.served, measured.slo)
        table.add_row("  median (ms)", *(_ms(summary.median) for summary in summaries), *ratios)
        table.add_row("  p99 (ms)", *(_ms(summary.p99) for summary in summaries))


def _ratios(figure: str, served: Sequence[Served], slo: Slo) -> list[str]:
    subject, *others = served
    return [_spell(try_ratio(figure, subject.rounds, other.rounds, slo)) for other in others]


def _spell(ratio: Ratio | None) -> str:
    if ratio is None:
        return _ABSENT
    spread = "" if ratio.low == ratio.high else f" ({ratio.low:.2f} to {ratio.high:.2f})"
    return f"{ratio.median:.2f}x{spread}"


def _ms(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:.2f}"


def _remarks(measured: Measurement, report: Report) -> list[Text]:
    lines = [Text(f"{lost.peer}: {lost.count} {lost.kind}: {lost.message}", style="red") for lost in report.failures]
    if len(measured.served) > 1:
        lines.append(Text("Comparisons: above 1 the first is better; median of the rounds (lowest to highest)."))
    if measured.slo.is_given:
        lines.append(Text(f"Goodput counts requests with {spell_slo(measured.slo)}."))
    for served in measured.served:
        lines += _remarks_on_answers(served)
    for show in report.shows:
        if show.goal is not None and not show.holds:
            value = _ABSENT if show.value is None else f"{show.value:.4g} {show.unit}"
            lines.append(
                Text(f"Missed: {show.name} is {value}, goal {show.goal}. {show.note}".rstrip(), style="yellow")
            )
    if measured.was_interrupted:
        lines.append(Text("The run was interrupted; the figures are of what was finished by then.", style="yellow"))
    return lines


def _remarks_on_answers(served: Served) -> list[Text]:
    counts, name = count(served.rounds), served.target.name
    lines = []
    if counts.short_answers:
        text = f"{name}: {counts.short_answers} answers were shorter than asked: does it know ignore_eos?"
        lines.append(Text(text, style="yellow"))
    if counts.uncounted:
        text = (
            f"{name}: {counts.uncounted} answers came without usage: their tokens are the chunks seen, their prompts"
            " uncounted."
        )
        lines.append(Text(text, style="yellow"))
    return lines

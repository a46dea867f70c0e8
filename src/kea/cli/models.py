"""`kea models`: which models are here, and whether Kea can serve them. Reads configs and headers, no weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from kea.cli.console import err, out
from kea.engine.config import DTYPES
from kea.errors import KeaError
from kea.models.describing import ModelDescription, describe_model

KIB = 1024
MAX_NAME = 40


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may be served: what is typed to serve it, where it lies, which revision."""

    name: str
    location: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out of a candidate: a description, or the reason why there is none."""

    name: str
    description: ModelDescription | None
    problem: str | None

    @property
    def refusal(self) -> str | None:
        return self.problem or (self.description.refusal if self.description is not None else None)


def models(
    model: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", show_default=False, help="Model directories or Hugging Face ids."),
    ] = None,
    *,
    dtype: Annotated[
        str, typer.Option(metavar="NAME", help=f"The arithmetic that sizes are told for: {', '.join(DTYPES)}.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Tell what models are, and whether Kea can serve them.

    Without MODEL: the embedded one and those in the cache of Hugging Face.
    Sizes are those on the CPU.

    Examples:

        kea models
        kea models ./Qwen3-0.6B openai/gpt-oss-20b
    """
    candidates = [Candidate(name, name) for name in model] if model else list(_find_here())
    findings = [_look_at(candidate, dtype) for candidate in candidates]
    if as_json:
        print(json.dumps([_to_json(finding) for finding in findings], indent=2))
    else:
        _show(findings)
    if model and any(finding.refusal for finding in findings):
        raise typer.Exit(1)


def _find_here() -> Iterator[Candidate]:
    from kea.models import EMBEDDED_NAME, embedded_model_path

    yield Candidate(EMBEDDED_NAME, str(embedded_model_path()))
    yield from _find_in_cache()


def _find_in_cache() -> Iterator[Candidate]:
    """Yield the models in Hugging Face's cache that have a config."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return
    for repo in sorted(cache.repos, key=lambda repo: repo.repo_id):
        newest = max(repo.revisions, key=lambda revision: revision.last_modified, default=None)
        if repo.repo_type == "model" and newest is not None and (newest.snapshot_path / "config.json").exists():
            yield Candidate(repo.repo_id, str(newest.snapshot_path))


def _look_at(candidate: Candidate, dtype: str) -> Finding:
    try:
        return Finding(candidate.name, describe_model(candidate.location, dtype=dtype), None)
    except KeaError as error:
        return Finding(candidate.name, None, str(error))


def _to_json(finding: Finding) -> dict[str, object]:
    facts = asdict(finding.description) if finding.description is not None else {}
    return {**facts, "name": finding.name, "refusal": finding.refusal}


def _show(findings: Sequence[Finding]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    table.add_column("model", overflow="fold", min_width=min(MAX_NAME, max(len(finding.name) for finding in findings)))
    table.add_column("family")
    for title in ("parameters", "weights", "context", "KV/token"):
        table.add_column(title, justify="right")
    table.add_column("served")
    for finding in findings:
        served = "[red]no[/]" if finding.refusal else "[green]yes[/]"
        table.add_row(escape(finding.name), *_cells(finding.description), served)
    out.print(table, soft_wrap=False)
    for finding in findings:
        if finding.refusal:
            err.print(f"\n[bold]{escape(finding.name)}[/]: {escape(finding.refusal)}")


def _cells(description: ModelDescription | None) -> tuple[str, ...]:
    if description is None:
        return ("?",) * 5
    return (
        description.family,
        _count(description.num_parameters),
        _size(description.weights_bytes),
        "?" if description.max_len is None else f"{description.max_len:,}",
        _size(description.kv_token_bytes),
    )


def _count(number: int | None) -> str:
    if number is None:
        return "?"
    for factor, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {letter}"
    return str(number)


def _size(num_bytes: int | None) -> str:
    if num_bytes is None:
        return "?"
    for factor, unit in ((KIB**3, "GiB"), (KIB**2, "MiB"), (KIB, "KiB")):
        if num_bytes >= factor:
            value = num_bytes / factor
            return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"
    return f"{num_bytes} B"

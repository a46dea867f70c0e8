"""Recorded loads: the Azure LLM inference traces (CSV) and Mooncake's traces (JSON lines).

Owns the two file formats. Does not know clocks or servers; an entry's offset is in seconds from the first entry.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice
from pathlib import Path

from kea.errors import InvalidRequest

# Mooncake hashes prompts in blocks of 512 tokens; equal ids mean equal blocks after equal predecessors.
MOONCAKE_BLOCK_LEN = 512
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_MOONCAKE_KEYS = ("timestamp", "input_length", "output_length")


@dataclass(frozen=True, slots=True)
class TraceEntry:
    """One recorded request. `block_ids` name the prompt's blocks of 512 tokens where the trace tells what is shared."""

    offset_s: float
    input_len: int
    output_len: int
    block_ids: tuple[int, ...] = ()


def read_trace(path: Path, limit: int) -> tuple[TraceEntry, ...]:
    """Read the first `limit` usable requests of a trace; the format is told by the first line.

    Requests without a prompt or an answer cannot be replayed and are left out. Raises InvalidRequest where the file
    is missing, malformed (with the line) or has no usable request.
    """
    if not path.is_file():
        raise InvalidRequest(f"trace is {str(path)!r}, and there is no such file.", param="trace")
    with path.open(encoding="utf-8-sig") as lines:
        entries = tuple(islice(_entries(lines, path), limit))
    if not entries:
        raise InvalidRequest(f"trace {str(path)!r} holds no request with a prompt and an answer.", param="trace")
    return entries


def _entries(lines: Iterable[str], path: Path) -> Iterator[TraceEntry]:
    numbered = iter(lines)
    first = next(numbered, "")
    if first.startswith(_AZURE_COLUMNS[0]):
        found = _azure_entries(numbered, first, path)
    elif first.lstrip().startswith("{"):
        found = _mooncake_entries(first, numbered, path)
    else:
        raise InvalidRequest(
            f"trace {str(path)!r} begins with {first[:60]!r}; known are the Azure CSV (columns "
            f"{', '.join(_AZURE_COLUMNS)}) and Mooncake's JSON lines (keys {', '.join(_MOONCAKE_KEYS)}).",
            param="trace",
        )
    return (entry for entry in found if entry.input_len >= 1 and entry.output_len >= 1)


def _azure_entries(lines: Iterator[str], header: str, path: Path) -> Iterator[TraceEntry]:
    start: datetime | None = None
    names = next(csv.reader([header]))
    for number, row in enumerate(csv.reader(lines), start=2):
        try:
            time, input_len, output_len = (row[names.index(column)] for column in _AZURE_COLUMNS)
            # Seven digits of a second are written; python reads six.
            at = datetime.fromisoformat(time[:26])
            start = start or at
            yield TraceEntry((at - start).total_seconds(), int(input_len), int(output_len))
        except (ValueError, IndexError) as error:
            raise _malformed(path, number, error) from error


def _mooncake_entries(first: str, lines: Iterator[str], path: Path) -> Iterator[TraceEntry]:
    start_ms: float | None = None
    for number, line in enumerate(chain((first,), lines), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            at_ms, input_len, output_len = (row[key] for key in _MOONCAKE_KEYS)
            start_ms = at_ms if start_ms is None else start_ms
            offset_s = (float(at_ms) - start_ms) / 1000
            yield TraceEntry(offset_s, int(input_len), int(output_len), tuple(row.get("hash_ids", ())))
        except (ValueError, KeyError, TypeError) as error:
            raise _malformed(path, number, error) from error


def _malformed(path: Path, number: int, error: Exception) -> InvalidRequest:
    return InvalidRequest(f"trace {str(path)!r} is malformed in line {number}: {error!r}.", param="trace")

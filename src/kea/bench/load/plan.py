"""What will be sent and when: lengths, arrivals, shared parts and traces put together into planned requests.

Owns the choice of arrivals and lengths; the same specification and round give the same plan. Does not know clocks,
tokenizers or servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from kea.bench.load.arrivals import burst_offsets, poisson_offsets, scaled_offsets
from kea.bench.load.lengths import LengthLaw
from kea.bench.load.prompts import FilePrompt, Piece
from kea.bench.load.traces import MOONCAKE_BLOCK_LEN, TraceEntry
from kea.errors import check_range


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How requests arrive. One of: `rate_per_s` (Poisson), `concurrency` (a new request when one ends), the trace's own
    times (neither, with a trace), or all at once (neither, without one)."""

    rate_per_s: float | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class TraceScale:
    """How a recorded load is fitted to the machine: multipliers of its gaps and of its lengths."""

    time: float = 1.0
    length: float = 1.0


@dataclass(frozen=True, slots=True)
class Workload:
    """The whole specification of a load. `max_*_len` cut what is longer; a trace or a prompt file overrides laws."""

    num_requests: int
    seed: int
    arrivals: Arrivals
    input_law: LengthLaw
    output_law: LengthLaw
    prefix_len: int = 0
    trace: tuple[TraceEntry, ...] = ()
    trace_scale: TraceScale = field(default_factory=TraceScale)
    prompts: tuple[FilePrompt, ...] = ()
    max_input_len: int | None = None
    max_output_len: int | None = None

    def __post_init__(self) -> None:
        check_range("num-requests", self.num_requests, 1)
        check_range("prefix-len", self.prefix_len, 0)
        check_range("trace-length-scale", self.trace_scale.length, 1e-6)
        check_range("trace-time-scale", self.trace_scale.time, 1e-6)
        for name, limit in (("max-input-len", self.max_input_len), ("max-output-len", self.max_output_len)):
            if limit is not None:
                check_range(name, limit, 1)
        if self.arrivals.concurrency is not None:
            check_range("concurrency", self.arrivals.concurrency, 1)


@dataclass(frozen=True, slots=True)
class Planned:
    """One request to send. `offset_s` is None where it is sent when another one ends. The prompt is a text as it stands
    or pieces to be rendered; `is_cut` says that a limit shortened it or its answer."""

    index: int
    offset_s: float | None
    prompt: str | tuple[Piece, ...]
    output_len: int
    is_cut: bool = False

    @property
    def input_len(self) -> int | None:
        """The wanted length in tokens, None for a text as it stands."""
        return None if isinstance(self.prompt, str) else sum(piece.num_tokens for piece in self.prompt)


def build_plan(workload: Workload, round_idx: int = 0) -> tuple[Planned, ...]:
    """Return the requests of one round in the order of their arrival.

    Rounds differ in their unique texts, drawn lengths and gaps; the shared prefix is the same in all of them.
    """
    key = f"{workload.seed}/{round_idx}"
    lengths = Random(f"{key}/lengths")
    offsets = _offsets(workload, Random(f"{key}/arrivals"))
    return tuple(_plan_one(workload, index, offset, key, lengths) for index, offset in enumerate(offsets))


def _offsets(workload: Workload, rng: Random) -> Sequence[float | None]:
    count = min(workload.num_requests, len(workload.trace) or workload.num_requests)
    arrivals = workload.arrivals
    if arrivals.concurrency is not None:
        return (None,) * count
    if arrivals.rate_per_s is not None:
        return poisson_offsets(arrivals.rate_per_s, count, rng)
    if workload.trace:
        return scaled_offsets([entry.offset_s for entry in workload.trace[:count]], workload.trace_scale.time)
    return burst_offsets(count)


def _plan_one(workload: Workload, index: int, offset: float | None, key: str, rng: Random) -> Planned:
    if workload.prompts:
        given = workload.prompts[index % len(workload.prompts)]
        output_len, is_cut = _cut(given.output_len or workload.output_law.draw(rng), workload.max_output_len)
        return Planned(index, offset, given.text, output_len, is_cut)
    entry = workload.trace[index] if workload.trace else None
    wanted_in, wanted_out = _lengths(workload, entry, rng)
    input_len, is_input_cut = _cut(wanted_in, workload.max_input_len)
    output_len, is_output_cut = _cut(wanted_out, workload.max_output_len)
    pieces = _pieces(workload, entry, input_len, f"{key}/{index}")
    return Planned(index, offset, pieces, output_len, is_input_cut or is_output_cut)


def _lengths(workload: Workload, entry: TraceEntry | None, rng: Random) -> tuple[int, int]:
    if entry is None:
        return workload.prefix_len + workload.input_law.draw(rng), workload.output_law.draw(rng)
    scale = workload.trace_scale.length
    return workload.prefix_len + _scaled(entry.input_len, scale), _scaled(entry.output_len, scale)


def _pieces(workload: Workload, entry: TraceEntry | None, input_len: int, unique: str) -> tuple[Piece, ...]:
    prefix_len = min(workload.prefix_len, input_len)
    prefix = (Piece(f"{workload.seed}/prefix", prefix_len),) if prefix_len else ()
    own_len = input_len - prefix_len
    if entry is None or not entry.block_ids:
        return (*prefix, Piece(unique, own_len))
    scale = workload.trace_scale.length
    starts = [min(round(i * MOONCAKE_BLOCK_LEN * scale), own_len) for i in range(len(entry.block_ids))]
    ends = [*starts[1:], own_len]
    blocks = zip(entry.block_ids, starts, ends, strict=True)
    shared = (Piece(f"{workload.seed}/block {block}", end - start) for block, start, end in blocks if end > start)
    return (*prefix, *shared)


def _scaled(length: int, scale: float) -> int:
    return max(1, round(length * scale))


def _cut(length: int, limit: int | None) -> tuple[int, bool]:
    return (length, False) if limit is None or length <= limit else (limit, True)

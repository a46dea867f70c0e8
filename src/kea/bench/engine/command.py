"""`kea bench engine`: one run from its options to its report.

Owns the exit status, the terminal, the processes' logs and what Ctrl-C does.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import typer
from rich.console import Console

from kea.bench.base import Bound, Peer, Report
from kea.bench.engine import settings as options
from kea.bench.engine.base import Answer, Order, Precision, Refusal, SystemSpec
from kea.bench.engine.cells import Cell, Load, create_cells
from kea.bench.engine.figures import Measured
from kea.bench.engine.fleet import Fleet, LoadedSystem, LoadOrder
from kea.bench.engine.peers import Absent, kea_specs, machine_spec, peer_specs
from kea.bench.engine.report import build_report
from kea.bench.engine.running import Course, run_rounds
from kea.bench.engine.settings import EngineSettings
from kea.bench.engine.shapes import Shape
from kea.bench.engine.table import render_result
from kea.bench.integers import parse_integer
from kea.bench.machine import OtherWork, read_machine
from kea.bench.progress import TurnsView
from kea.bench.serve_options import check_writable
from kea.bench.terminal import EXIT_INTERRUPTED, EXIT_NOTHING, ending_as_by_ctrl_c, exit_with, print_result
from kea.errors import InvalidRequest, KeaError, check_range

_KV_SHARE = 0.5  # of the memory that is free, for all systems' KV together
_KV_SHARE_GPU = 0.7
_KV_BYTES, _KV_BYTES_GPU = 4, 2
_GPU_SYSTEM_BYTES = 2 << 30  # of a process on a GPU beside its weights and KV
_GPU_BOUNDS_BYTES = 6 << 30  # of the process that measures its bounds
_BOUND_ROWS, _BOUND_ROWS_GPU = (32, 1024), (256, 8192)
_SLACK_TOKENS = 1024
_DRAWN_BEFORE = 128
_PEAK_ROWS = 1024
_FOREVER_S = 7 * 86_400.0


def engine(
    *,
    model: options.ModelName = "100m",
    precisions: options.Precisions = None,
    peers: options.Peers = options.ALL,
    scenarios: options.Scenarios = options.ALL,
    prompt_lens: options.PromptLens = "128,1024,4096",
    batches: options.Batches = "1,4,8,16,32",
    contexts: options.Contexts = "128,2048",
    sequences: options.NumShared = "32",
    trace: options.Trace = None,
    trace_length_scale: options.LengthScale = 1.0,
    rate: options.Rate = 1.0,
    num_requests: options.NumRequests = "32",
    rounds: options.Rounds = 3,
    steps: options.Steps = 16,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    kv_tokens: options.KvTokens = None,
    kv_cache_dtype: options.KvCacheDtype = "auto",
    quick: options.Quick = False,
    time_limit_s: options.TimeLimit = None,
    timeout_s: options.Timeout = 600.0,
    seed: options.Seed = 0,
    peers_dir: options.PeersDir = Path(".peers"),
    cache_dir: options.CacheDir = None,
    json_file: options.JsonFile = None,
) -> None:
    """Measure Kea's engine, its peers and the machine's bounds in turn.

    All get the same weights and prompts. A peer that is not installed is reported
    as absent; `make peers` installs them.

    Examples:

        kea bench engine --quick
        kea bench engine --precisions bf16,int8 --peers llamacpp --json FILE
        kea bench engine --model embedded --scenarios decode,start --peers none
    """
    try:
        weights = options.read_weights(model, cache_dir)
        found = options.read_precisions(precisions, weights)
        kv = options.read_kv_cache_dtype(kv_cache_dtype)
        device = "cpu" if device == "cpu" else options.check_on_device(device, found, kv)
        count = parse_integer(num_requests, "num-requests")
        load = Load(
            options.read_scenarios(scenarios, device),
            options.read_sizes(prompt_lens, "prompt-lens"),
            options.read_sizes(batches, "batches"),
            options.read_sizes(contexts, "contexts"),
            options.read_sizes(sequences, "sequences"),
            num_steps=steps,
            requests=options.plan_requests(trace, trace_length_scale, rate, count, seed),
            seed=seed,
        )
        for name, value in (("rounds", rounds), ("steps", steps)):
            check_range(name, value, 1)
        options.check_seconds({"time-limit-s": time_limit_s, "timeout-s": timeout_s})
        settings = EngineSettings(
            weights,
            found,
            options.read_peers(peers, device),
            peers_dir.resolve(),
            load,
            num_rounds=rounds,
            num_threads=options.read_threads(threads, read_machine().num_cores),
            kv_tokens=None if kv_tokens is None else options.read_size(kv_tokens, "kv-tokens"),
            timeout_s=timeout_s,
            load_s=timeout_s,
            limit_s=time_limit_s,
            kv_cache_dtype=kv,
            device=device,
        )
        status = run(options.make_quick(settings) if quick else settings, json_file)
    except KeaError as error:
        raise exit_with(error) from error
    raise typer.Exit(status)


def run(settings: EngineSettings, json_file: Path | None) -> int:
    """Measure, print the tables, write the report, and return the exit status."""
    check_writable(json_file, "json")
    notes = Console(stderr=True)
    machine, began, started, others = read_machine(), datetime.now(UTC), time.perf_counter(), OtherWork()
    with TurnsView(notes) as view, tempfile.TemporaryDirectory(prefix="kea-bench-") as logs:
        try:
            with ending_as_by_ctrl_c():
                measured = _Run(settings, view, Path(logs)).measure()
        except KeyboardInterrupt:
            measured = None
    if measured is None:
        notes.print("Stopped before anything was measured.")
        return EXIT_INTERRUPTED
    machine = replace(machine, other_share=others.share())
    report = build_report(measured, settings.describe(), machine, began, time.perf_counter() - started)
    print_result(render_result(measured, report))
    if json_file is not None:
        report.write(json_file)
        notes.print(f"Report: {json_file}", highlight=False, markup=False)
    return _status(report)


def _status(report: Report) -> int:
    if report.interrupted:
        return EXIT_INTERRUPTED
    is_measured = any(sample.peer.startswith("kea ") for sample in report.samples)
    return 0 if is_measured else EXIT_NOTHING


@dataclass(frozen=True, slots=True)
class _Run:
    """One run; lives as long as its processes."""

    settings: EngineSettings
    view: TurnsView
    logs: Path

    def measure(self) -> Measured:
        settings = self.settings
        deadline_s = time.monotonic() + (settings.limit_s or _FOREVER_S)
        specs = self._specs()
        shape = settings.weights.shape
        present = [spec for spec in specs if isinstance(spec, SystemSpec)]
        cells, left_out = choose_cells(shape, settings, len(present))
        _check_cells(cells, left_out)
        load = self._load_order(cells)
        systems = [LoadedSystem(spec, load) for spec in present]
        machine = LoadedSystem(machine_spec(settings.device), self._machine_order())
        with Fleet([*systems, machine]) as fleet:
            peers = self._load_all(fleet, systems, specs, deadline_s)
            self.view.phase("measuring the machine")
            bounds = machine.load(settings.load_s)
            peaks: list[Bound] = []
            rows = _BOUND_ROWS if settings.device == "cpu" else _BOUND_ROWS_GPU
            course = Course(cells, settings.num_rounds, settings.timeout_s, deadline_s, bound_rows=rows)
            if isinstance(bounds, Refusal):
                peers.append(Peer("machine", "failed", None, bounds.message))
            else:
                peaks = _peaks(machine, settings.timeout_s, str(bounds.values["note"]))
            self.view.begin(course.num_turns(len(fleet.systems)))
            rounds = run_rounds(course, fleet.systems, None if isinstance(bounds, Refusal) else machine, self.view)
        return Measured(
            shape,
            tuple(cells),
            tuple(left_out),
            tuple(peers),
            rounds,
            tuple(peaks),
            settings.kv_value_bytes,
            "a layer's products in fp32; median of the run" if settings.device == "cpu" else _gpu_note(bounds),
        )

    def _specs(self) -> list[SystemSpec | Absent]:
        settings = self.settings
        self.view.phase(f"preparing the weights of {settings.weights.shape.name}")
        options.create_cache(settings.weights.cache)
        own = kea_specs(settings.weights, settings.precisions, settings.kv_cache_dtype)
        specs: list[SystemSpec | Absent] = list(own)
        for name in settings.peers:
            self.view.phase(f"preparing the weights for {name}")
            found = peer_specs(name, settings.peers_dir, settings.weights, settings.precisions)
            for absent in (spec for spec in found if isinstance(spec, Absent)):
                self.view.note(f"{absent.label}: absent, {absent.reason}")
            specs += found
        return specs

    def _load_order(self, cells: Sequence[Cell]) -> LoadOrder:
        settings, shape = self.settings, self.settings.weights.shape
        most_seqs = max((cell.batch for cell in cells), default=1)
        is_gpu = settings.device != "cpu"
        kv_tokens = max((cell.kv_tokens for cell in cells), default=0) + _SLACK_TOKENS
        kv_tokens += most_seqs * _DRAWN_BEFORE if is_gpu else 0  # long prompts of many: the first ones draw meanwhile
        arguments = {
            "device": settings.device,
            "threads": settings.num_threads,
            "kv_tokens": kv_tokens,
            "kv_bytes": kv_tokens * shape.kv_token_values * (_KV_BYTES_GPU if is_gpu else _KV_BYTES),
            "max_len": min(shape.max_len, max((longest(cell, settings.load) for cell in cells), default=1)),
            "max_seqs": most_seqs + 8,
        }
        return LoadOrder(arguments, self.logs, settings.load_s)

    def _machine_order(self) -> LoadOrder:
        settings, shape = self.settings, self.settings.weights.shape
        sizes = {precision: int(shape.weight_bytes(precision)) for precision in settings.precisions}
        arguments = {
            "threads": settings.num_threads,
            "sizes": sizes,
            "matrices": shape.matrices,
            "device": settings.device,
        }
        return LoadOrder(arguments, self.logs, settings.load_s)

    def _load_all(
        self,
        fleet: Fleet,
        systems: Sequence[LoadedSystem],
        specs: Sequence[SystemSpec | Absent],
        deadline_s: float,
    ) -> list[Peer]:
        """Load every system that is there; return all of them in the order in which they were asked for."""
        by_label = {system.label: system for system in systems}
        peers = []
        for spec in specs:
            if isinstance(spec, Absent):
                peers.append(Peer(spec.label, "absent", None, spec.reason))
            else:
                self.view.phase(f"loading {spec.label}")
                peers.append(fleet.load(by_label[spec.label], max(1.0, deadline_s - time.monotonic())))
        return peers


def _peaks(machine: LoadedSystem, timeout_s: float, units: str) -> list[Bound]:
    """Return the rate of 16-bit products, by which systems can exceed the bound of fp32 ones."""
    answer = machine.ask(Order("bf16_peak", {"rows": _PEAK_ROWS}), timeout_s)
    if not isinstance(answer, Answer):
        return []
    note = f"a layer's products in bfloat16 by torch, for information; {units}"
    return [Bound("product_rate_bf16", answer.values["bf16"] / 1e9, "GFLOP/s", note)]


def choose_cells(shape: Shape, settings: EngineSettings, num_systems: int) -> tuple[list[Cell], list[tuple[str, str]]]:
    """Return the cells that fit the model and the memory, and those left out with the reason."""
    from kea.engine.machine import free_memory_bytes  # imports torch: only once a run begins

    kv_tokens, why = settings.kv_tokens, "kv-tokens is"
    if kv_tokens is None:
        kv_tokens = _affordable_tokens(shape, settings, free_memory_bytes(settings.device), max(1, num_systems))
        why = "the memory allows each system"
    kept, left_out = [], []
    for cell in create_cells(shape, settings.load):
        length = longest(cell, settings.load)
        if length > shape.max_len:
            left_out.append((cell.name, f"needs {length:,} positions; the model has {shape.max_len:,}"))
        elif cell.kv_tokens > kv_tokens:
            left_out.append((cell.name, f"needs {cell.kv_tokens:,} tokens of KV; {why} {kv_tokens:,}"))
        else:
            kept.append(cell)
    return kept, left_out


def _check_cells(cells: Sequence[Cell], left_out: Sequence[tuple[str, str]]) -> None:
    """Raise InvalidRequest where nothing is left to measure: no system is to load for that."""
    if not cells:
        name, why = left_out[0]
        others = f" The other {len(left_out) - 1} are left out, too." if len(left_out) > 1 else ""
        raise InvalidRequest(f"Nothing can be measured: {name} {why}.{others}")


def _affordable_tokens(shape: Shape, settings: EngineSettings, free: int, num_systems: int) -> int:
    """Return the tokens of KV for which each system has memory. On a GPU each has its weights there, too."""
    if settings.device == "cpu":
        return int(free * _KV_SHARE / (num_systems * shape.kv_token_values * _KV_BYTES))
    own = shape.weight_bytes(Precision.BF16) + _GPU_SYSTEM_BYTES
    left = max(0.0, free - num_systems * own - _GPU_BOUNDS_BYTES)
    return int(left * _KV_SHARE_GPU / (num_systems * shape.kv_token_values * _KV_BYTES_GPU))


def _gpu_note(bounds: Answer | Refusal) -> str:
    name = bounds.values["note"] if isinstance(bounds, Answer) else "a GPU that could not be measured"
    return f"a layer's products in bfloat16 on {name}; median of the run"


def longest(cell: Cell, load: Load) -> int:
    """Return the tokens of a cell's longest sequence with room for what it draws, also while others are prefilled."""
    if cell.scenario == "arrivals":
        return max(input_len + output_len for _, input_len, output_len in load.requests) + 1
    return cell.context + 2 * load.num_steps + _DRAWN_BEFORE

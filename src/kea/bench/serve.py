"""`kea bench serve`: one run of the load client from its options to its report.

Owns the exit status, the terminal and what Ctrl-C does. Does not know how a load is sent or counted.
"""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import typer
from rich.console import Console

from kea.bench import serve_options as options
from kea.bench.integers import parse_integer
from kea.bench.load.client import RequestShape, Target
from kea.bench.load.figures import count
from kea.bench.load.lengths import parse_lengths
from kea.bench.load.plan import TraceScale, Workload
from kea.bench.load.prompts import read_prompts
from kea.bench.load.traces import read_trace
from kea.bench.machine import read_machine
from kea.bench.progress import ProgressView
from kea.bench.serve_report import build_report, write_requests
from kea.bench.serving import Measurement, RelativeSlo, ServeSettings, measure
from kea.bench.starting import Places, Start, read_starts, serving, targets_of
from kea.bench.statistics import Slo
from kea.bench.table import render_result
from kea.bench.terminal import EXIT_INTERRUPTED, EXIT_NOTHING, ending_as_by_ctrl_c, exit_with, print_result
from kea.errors import KeaError


def serve(
    *,
    base_url: options.BaseUrl = options.DEFAULT_URL,
    name: options.Name = "server",
    model: options.ModelName = None,
    api_key: options.ApiKey = None,
    peer: options.Peers = None,
    peer_key: options.PeerKeys = None,
    peer_model: options.PeerModels = None,
    start: options.Starts = None,
    start_flags: options.StartFlags = None,
    peers_dir: options.PeersDir = Path(".peers"),
    cache_dir: options.CacheDir = None,
    api: options.Api = options.ApiChoice.COMPLETIONS,
    rate: options.Rate = None,
    concurrency: options.Concurrency = None,
    trace: options.Trace = None,
    trace_time_scale: options.TimeScale = 1.0,
    trace_length_scale: options.LengthScale = 1.0,
    num_requests: options.NumRequests = "100",
    rounds: options.Rounds = None,
    warmups: options.Warmups = 2,
    seed: options.Seed = 0,
    quick: options.Quick = False,
    time_limit_s: options.TimeLimit = None,
    timeout_s: options.Timeout = 600.0,
    input_len: options.InputLen = "512",
    output_len: options.OutputLen = "128",
    max_input_len: options.MaxInputLen = None,
    max_output_len: options.MaxOutputLen = None,
    prefix_len: options.PrefixLen = "0",
    prompts: options.Prompts = None,
    ignore_eos: options.IgnoreEos = True,
    temperature: options.Temperature = 0.0,
    extra_body: options.ExtraBody = None,
    slo_ttft_ms: options.SloTtft = None,
    slo_tpot_ms: options.SloTpot = None,
    slo_e2e_ms: options.SloE2e = None,
    slo_of: options.SloOf = None,
    slo_ttft_factor: options.TtftFactor = 2.0,
    slo_tpot_factor: options.TpotFactor = 1.5,
    json_file: options.JsonFile = None,
    requests_file: options.RequestsFile = None,
) -> None:
    """Load an OpenAI-compatible server and report what its users would see.

    Latencies, throughput, and goodput: the requests per second that were answered
    within an objective. Several servers are loaded in turn and compared.

    Examples:

        kea bench serve --base-url http://127.0.0.1:8000 --quick
        kea bench serve --rate 4 --slo-ttft-ms 500 --slo-tpot-ms 50
        kea bench serve --start kea=100m --start vllm=100m --slo-of vllm --rate 2
    """
    try:
        count_wanted = parse_integer(num_requests, "num-requests")
        workload = Workload(
            num_requests=count_wanted,
            seed=seed,
            arrivals=options.read_arrivals(rate, concurrency),
            input_law=parse_lengths(input_len, "input-len"),
            output_law=parse_lengths(output_len, "output-len"),
            prefix_len=parse_integer(prefix_len, "prefix-len"),
            trace=read_trace(trace, count_wanted) if trace else (),
            trace_scale=TraceScale(trace_time_scale, trace_length_scale),
            prompts=read_prompts(prompts) if prompts else (),
            max_input_len=options.try_limit(max_input_len, "max-input-len"),
            max_output_len=options.try_limit(max_output_len, "max-output-len"),
        )
        starts = read_starts(start or [], start_flags or [])
        options.check_whose(base_url, starts_servers=bool(starts))
        first = Target(name, base_url, api_key, model)
        others = options.read_targets(first, peer or [], peer_key or [], peer_model or [])
        settings = ServeSettings(
            targets=(*targets_of(starts), *others[1:]) if starts else others,
            workload=workload,
            shape=RequestShape(api.value, ignore_eos, temperature, timeout_s, options.read_extra(extra_body)),
            slo=Slo(
                options.try_seconds(slo_ttft_ms, "slo-ttft-ms"),
                options.try_seconds(slo_tpot_ms, "slo-tpot-ms"),
                options.try_seconds(slo_e2e_ms, "slo-e2e-ms"),
            ),
            relative_slo=RelativeSlo(slo_of, slo_ttft_factor, slo_tpot_factor) if slo_of else None,
            num_rounds=rounds if rounds is not None else (3 if peer or len(starts) > 1 else 1),
            num_warmups=warmups,
            limit_s=time_limit_s,
        )
        places = Places(peers_dir.resolve(), cache_dir)
        if quick:
            settings = options.make_quick(settings, starts_servers=bool(starts))
            places = replace(places, ready_s=options.QUICK_READY_S)
        status = run(settings, Started(starts, places), json_file, requests_file)
    except KeaError as error:
        raise exit_with(error) from error
    raise typer.Exit(status)


@dataclass(frozen=True, slots=True)
class Started:
    """The servers that the run starts itself, none by default."""

    starts: tuple[Start, ...] = ()
    places: Places = field(default_factory=lambda: Places(Path(), None))


def run(settings: ServeSettings, own: Started, json_file: Path | None, requests_file: Path | None) -> int:
    """Measure, print the table, write the files, and return the exit status."""
    options.check_writable(json_file, "json")
    options.check_writable(requests_file, "requests")
    notes = Console(stderr=True)
    machine, began, started = read_machine(), datetime.now(UTC), time.perf_counter()
    with ProgressView(notes) as view:
        try:
            with ending_as_by_ctrl_c(), serving(own.starts, own.places, view) as fleet:
                named = [replace(one, model=fleet.models.get(one.name, one.model)) for one in settings.targets]
                settings = replace(settings, targets=tuple(named)).without(fleet.lost)
                measured = asyncio.run(_measure_until_interrupted(settings, view))
        except KeyboardInterrupt:
            measured = None
    if measured is None:
        notes.print("Stopped before the load began; nothing was measured.")
        return EXIT_INTERRUPTED
    measured = replace(measured, lost=fleet.lost)
    report = build_report(settings, measured, machine, began, time.perf_counter() - started)
    print_result(render_result(measured, report))
    if json_file is not None:
        report.write(json_file)
        notes.print(f"Report: {json_file}", highlight=False, markup=False)
    if requests_file is not None:
        write_requests(measured, requests_file)
        notes.print(f"Requests: {requests_file}", highlight=False, markup=False)
    return _status(measured)


async def _measure_until_interrupted(settings: ServeSettings, view: ProgressView) -> Measurement | None:
    """The first Ctrl-C or SIGTERM ends the run and reports what finished; a second one ends the program."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)

    def interrupt() -> None:
        stop.set()
        restore()

    for number in before:
        loop.add_signal_handler(number, interrupt)
    try:
        return await measure(settings, view, stop)
    finally:
        restore()


def _status(measured: Measurement) -> int:
    if measured.was_interrupted:
        return EXIT_INTERRUPTED
    is_answered = all(count(served.rounds).answered for served in measured.served)
    return 0 if is_answered else EXIT_NOTHING

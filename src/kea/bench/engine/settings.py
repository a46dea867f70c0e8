"""The options of `kea bench engine` and how their spellings become a run's settings.

Owns names, help, parsing and the cut of `--quick`. Does not know how a run is measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer

from kea.bench.base import Scalar
from kea.bench.engine.base import Precision
from kea.bench.engine.cells import SCENARIOS, Load
from kea.bench.engine.peers import PEERS, Weights, native_precision, peers_of
from kea.bench.engine.shapes import SHAPES, read_shape
from kea.bench.integers import parse_integer
from kea.bench.load.arrivals import poisson_offsets
from kea.bench.load.traces import read_trace
from kea.errors import InvalidRequest, check_range
from kea.models.base import KV_CACHE_DTYPES
from kea.models.shipped import require_embedded_model

ALL, NONE = "all", "none"
EMBEDDED = "embedded"
_KV_CACHE_DTYPES = tuple(name for name in KV_CACHE_DTYPES if name != "bfloat16")  # that rounds on no device
_LOAD, _RUN, _WHERE, _OUTPUT = "What is measured", "How", "Where things are", "Output"
_MIN_LEN, _MAX_LEN = 1, 2048
_QUICK_LIMIT_S, _QUICK_LOAD_S = 270.0, 140.0
_QUICK_SCENARIOS = ("prefill", "decode", "cache", "overhead", "latency")
_DEFAULT_LENS = ((64, 16), (256, 32), (512, 64))  # of arrivals without a trace, in turn


def _option(panel: str, text: str, metavar: str | None, *names: str, envvar: str | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar, envvar=envvar)


_SHAPE_NAMES = ", ".join(SHAPES)
ModelName = Annotated[
    str, _option(_LOAD, f"A shape of random weights ({_SHAPE_NAMES}), the directory of a Llama, or {EMBEDDED}.", "NAME")
]
Precisions = Annotated[
    str | None, _option(_LOAD, "Of Kea and llama.cpp: bf16, f16, f32, int8; by default the checkpoint's.", "LIST")
]
Peers = Annotated[str, _option(_LOAD, f"Systems to compare with: {', '.join(PEERS)}; or {NONE}.", "LIST")]
Scenarios = Annotated[str, _option(_LOAD, f"What to measure: {', '.join(SCENARIOS)}.", "LIST")]
PromptLens = Annotated[str, _option(_LOAD, "Tokens of prompts, for prefill.", "LIST")]
Batches = Annotated[str, _option(_LOAD, "Sequences that decode together.", "LIST")]
Contexts = Annotated[str, _option(_LOAD, "Tokens of each of them.", "LIST")]
NumShared = Annotated[str, _option(_LOAD, "Sequences under one prefix of 2,048 tokens.", "LIST")]
Trace = Annotated[Path | None, _option(_LOAD, "A recorded load (Azure CSV): lengths of arrivals.", "FILE")]
LengthScale = Annotated[float, _option(_LOAD, "Multiplies the trace's lengths.", "NUMBER")]
Rate = Annotated[float, _option(_LOAD, "Arrivals per second, a Poisson process; inf: all at once.", "NUMBER")]
NumRequests = Annotated[str, _option(_LOAD, "Arrivals in a round.", "COUNT")]

Device = Annotated[str, _option(_RUN, "Where Kea and its peers run: cpu, cuda or cuda:N.", "NAME")]
Rounds = Annotated[int, _option(_RUN, "Each measures every cell on every system in turn.", "COUNT")]
Steps = Annotated[int, _option(_RUN, "Decode steps timed per cell and round.", "COUNT")]
Threads = Annotated[int | None, _option(_RUN, "Of every system, at most one per core, as by default.", "COUNT")]
KvTokens = Annotated[
    str | None,
    _option(_RUN, "The most KV a cell may need; larger ones are left out. By default what memory allows.", "TOKENS"),
]
KvCacheDtype = Annotated[
    str, _option(_RUN, f"How Kea keeps keys and values: {', '.join(_KV_CACHE_DTYPES)} (auto is fp32).", "NAME")
]
Quick = Annotated[bool, _option(_RUN, "Fewer and smaller cells, within 5 minutes.", None, "--quick")]
TimeLimit = Annotated[float | None, _option(_RUN, "Stop after this time; what was measured by then counts.", "SECONDS")]
Timeout = Annotated[float, _option(_RUN, "The most one system may take for one cell, or to load.", "SECONDS")]
Seed = Annotated[int, _option(_RUN, "The same seed gives the same prompts.", "NUMBER")]

PeersDir = Annotated[Path, _option(_WHERE, "The environments that `make peers` makes.", "DIR", envvar="KEA_PEERS_DIR")]
CacheDir = Annotated[
    Path | None,
    _option(_WHERE, "Weights made for a run; by default ~/.cache/kea/bench.", "DIR", envvar="KEA_BENCH_CACHE"),
]
JsonFile = Annotated[Path | None, _option(_OUTPUT, "Write the report.", "FILE", "--json")]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """One run. `limit_s` bounds it whole, `load_s` the loading of one system, `timeout_s` one cell of one system."""

    weights: Weights
    precisions: tuple[Precision, ...]
    peers: tuple[str, ...]
    peers_dir: Path
    load: Load
    num_rounds: int
    num_threads: int
    kv_tokens: int | None
    timeout_s: float
    load_s: float
    limit_s: float | None
    kv_cache_dtype: str = "auto"
    device: str = "cpu"

    @property
    def kv_value_bytes(self) -> float:
        """The bytes of a value of Kea's KV. On a GPU they are kept as they are computed."""
        return 2.0 if self.device != "cpu" else self.weights.shape.kv_value_bytes(self.kv_cache_dtype)

    def describe(self) -> dict[str, Scalar]:
        """Return what shaped the load, for the report."""
        load = self.load
        return {
            "scenarios": ",".join(load.scenarios),
            "precisions": ",".join(self.precisions),
            "prompt_lens": _spell(load.prompt_lens),
            "batches": _spell(load.batches),
            "contexts": _spell(load.contexts),
            "num_shared": _spell(load.num_shared),
            "num_requests": len(load.requests),
            "num_steps": load.num_steps,
            "num_rounds": self.num_rounds,
            "num_threads": self.num_threads,
            "kv_tokens": self.kv_tokens,
            "kv_cache_dtype": self.kv_cache_dtype,
            "device": self.device,
            "seed": load.seed,
            "limit_s": self.limit_s,
        }


def _spell(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


def read_weights(model: str, cache: Path | None) -> Weights:
    """Return what to measure: a shape made on the spot, the embedded model, or the Llama in a directory."""
    cache = cache or Path.home() / ".cache" / "kea" / "bench"
    if model in SHAPES:
        return Weights(SHAPES[model], cache)
    path = require_embedded_model() if model == EMBEDDED else Path(model)
    return Weights(read_shape(path), cache, path)


def read_precisions(text: str | None, weights: Weights) -> tuple[Precision, ...]:
    """Return the precisions asked for; those of a given checkpoint are its own and int8."""
    own = Precision.BF16 if weights.given is None else native_precision(weights.given)
    names = [own.value] if text is None else _names(text, "precisions", [one.value for one in Precision])
    precisions = tuple(Precision(name) for name in names)
    for precision in precisions:
        if weights.given is not None and precision not in (own, Precision.INT8):
            raise InvalidRequest(
                f"precisions names {precision}; the checkpoint is {own}, and can be measured as {own} or int8.",
                param="precisions",
            )
    return precisions


def read_kv_cache_dtype(text: str) -> str:
    if text not in _KV_CACHE_DTYPES:
        raise InvalidRequest(
            f"kv-cache-dtype is {text!r}; allowed: {', '.join(_KV_CACHE_DTYPES)}.", param="kv-cache-dtype"
        )
    return text


def read_peers(text: str, device: str) -> tuple[str, ...]:
    """Return the peers that are named, of those that run on the device."""
    known = peers_of(device)
    if text in (ALL, NONE):
        return known if text == ALL else ()
    return tuple(_names(text, "peers", known, f"; or {ALL} or {NONE} alone"))


def read_scenarios(text: str, device: str) -> tuple[str, ...]:
    """Return the scenarios that are named. What the host does beside a GPU is not apart from it: no overhead there."""
    known = SCENARIOS if device == "cpu" else tuple(name for name in SCENARIOS if name != "overhead")
    return known if text == ALL else tuple(_names(text, "scenarios", known, f"; or {ALL} alone"))


def check_on_device(device: str, precisions: Sequence[Precision], kv_cache_dtype: str) -> str:
    """Return the device to measure on. Raises InvalidRequest where it is not there, or has no such arithmetic."""
    from kea.engine.machine import resolve_device  # imports torch: only once it is asked for

    found = resolve_device(device)
    if found == "cpu":
        return found
    if tuple(precisions) != (Precision.BF16,):
        raise InvalidRequest(f"precisions is {','.join(precisions)}; on {found} it is bf16.", param="precisions")
    if kv_cache_dtype != "auto":
        raise InvalidRequest(f"kv-cache-dtype is {kv_cache_dtype!r}; on {found} it is auto.", param="kv-cache-dtype")
    return found


def read_sizes(text: str, param: str) -> tuple[int, ...]:
    """Read numbers above 0 between commas, each once."""
    sizes = dict.fromkeys(parse_integer(part, param) for part in text.split(","))
    for size in sizes:
        check_range(param, size, 1)
    return tuple(sizes)


def read_size(text: str, param: str) -> int:
    size = parse_integer(text, param)
    check_range(param, size, 1)
    return size


def read_threads(threads: int | None, num_cores: int) -> int:
    """Return the threads of every system: those asked for, else one per core. More would wait for each other."""
    if threads is None:
        return num_cores
    check_range("threads", threads, 1, num_cores)
    return threads


def check_seconds(times: Mapping[str, float | None]) -> None:
    for name, value in times.items():
        if value is not None and not value > 0:
            raise InvalidRequest(f"{name} is {value!r}; it must be above 0 seconds.", param=name)


def create_cache(folder: Path) -> None:
    """Create the folder of weights. Raises InvalidRequest where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InvalidRequest(
            f"cache-dir is {str(folder)!r}, which cannot be written: {error.strerror}.", param="cache-dir"
        ) from error


def _names(text: str, param: str, known: Sequence[str], or_else: str = "") -> list[str]:
    """Read names between commas, each once. `or_else` ends the sentence about what is allowed."""
    names = list(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in known:
            raise InvalidRequest(f"{param} names {name!r}; allowed: {', '.join(known)}{or_else}.", param=param)
    return names


def plan_requests(
    trace: Path | None, length_scale: float, rate: float, count: int, seed: int
) -> tuple[tuple[float, int, int], ...]:
    """Return arrivals at a Poisson process's times, with a trace's lengths scaled and cut to 1 to 2,048 tokens, or
    without one with three lengths in turn.
    """
    check_range("num-requests", count, 1)
    check_range("trace-length-scale", length_scale, 1e-6)
    offsets = poisson_offsets(rate, count, Random(seed))
    if trace is None:
        lengths = [_DEFAULT_LENS[index % len(_DEFAULT_LENS)] for index in range(count)]
    else:
        entries = read_trace(trace, count)
        lengths = [(_scaled(one.input_len, length_scale), _scaled(one.output_len, length_scale)) for one in entries]
    return tuple((offset, *lengths[index]) for index, offset in enumerate(offsets[: len(lengths)]))


def _scaled(length: int, scale: float) -> int:
    return min(_MAX_LEN, max(_MIN_LEN, round(length * scale)))


def make_quick(settings: EngineSettings) -> EngineSettings:
    """Return the same run cut down so that it ends within five minutes, also with peers that load slowly."""
    load = settings.load
    small = replace(
        load,
        scenarios=tuple(name for name in load.scenarios if name in _QUICK_SCENARIOS) or load.scenarios,
        prompt_lens=tuple(size for size in load.prompt_lens if size <= 1024) or (128,),
        batches=tuple(size for size in load.batches if size in (1, 8, 32)) or load.batches[:1],
        contexts=load.contexts[:1],
        num_steps=min(load.num_steps, 8),
    )
    return replace(
        settings,
        load=small,
        num_rounds=min(settings.num_rounds, 2),
        timeout_s=min(settings.timeout_s, 60.0),
        load_s=min(settings.load_s, _QUICK_LOAD_S),
        limit_s=min(settings.limit_s or _QUICK_LIMIT_S, _QUICK_LIMIT_S),
    )

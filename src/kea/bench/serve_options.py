"""The options of `kea bench serve` and how their spellings become values.

Owns names, help and parsing. Does not know what a run does with them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from kea.bench.integers import parse_integer
from kea.bench.load.client import Target
from kea.bench.load.plan import Arrivals
from kea.bench.serving import ServeSettings
from kea.bench.starting import KINDS, read_pairs
from kea.errors import InvalidRequest, check_range

_START = "Servers to start"
_LOAD, _LENGTHS, _GOALS, _OUTPUT = "Load", "Prompts and answers", "Objectives", "Output"

# --quick: servers ready, the rest before the load, and all rounds: less than 300 s, with servers to start or not.
QUICK_READY_S = 140.0
_QUICK_REQUESTS, _QUICK_LIMIT_S, _QUICK_STARTED_LIMIT_S, _QUICK_PREPARE_S = 32, 200.0, 90.0, 60.0
_QUICK_INPUT_LEN, _QUICK_OUTPUT_LEN = 256, 32


class ApiChoice(StrEnum):
    """Which of the two streamed endpoints is measured."""

    COMPLETIONS = "completions"
    CHAT = "chat"


def _option(panel: str, text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar)


DEFAULT_URL = "http://127.0.0.1:8000"
BaseUrl = Annotated[str, typer.Option(metavar="URL", help="The server to measure, with or without /v1.")]
Name = Annotated[str, typer.Option(metavar="NAME", help="What the report calls this server.")]
ModelName = Annotated[
    str | None, typer.Option(metavar="NAME", help="The model's name; a server with one model needs none.")
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="KEA_API_KEY", metavar="KEY", help="This server's key; peers do not see it.")
]
Peers = Annotated[list[str] | None, typer.Option(metavar="NAME=URL", help="A server to compare with. Repeatable.")]
PeerKeys = Annotated[list[str] | None, typer.Option(metavar="NAME=KEY", help="The key of a peer. Repeatable.")]
PeerModels = Annotated[
    list[str] | None, typer.Option(metavar="NAME=MODEL", help="A peer's name for the model, if it has several.")
]
Starts = Annotated[
    list[str] | None,
    _option(
        _START,
        f"Start the server of {', '.join(KINDS)} with this model (or shape, such as 100m) instead; the first is the"
        " one that is compared. Repeatable.",
        "--start",
        metavar="NAME=MODEL",
    ),
]
StartFlags = Annotated[
    list[str] | None, _option(_START, "The flags of a server that is started. Repeatable.", metavar="NAME=FLAGS")
]
PeersDir = Annotated[
    Path,
    typer.Option(envvar="KEA_PEERS_DIR", metavar="DIR", help="The environments of peers.", rich_help_panel=_START),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(envvar="KEA_BENCH_CACHE", metavar="DIR", help="Where shapes are made.", rich_help_panel=_START),
]
Api = Annotated[ApiChoice, typer.Option(help="The endpoint.")]

Rate = Annotated[
    str | None, _option(_LOAD, "Poisson arrivals per second; inf (the default) is all at once.", metavar="NUMBER")
]
Concurrency = Annotated[
    int | None, _option(_LOAD, "Instead of a rate: keep this many requests under way.", metavar="COUNT")
]
Trace = Annotated[
    Path | None,
    _option(
        _LOAD,
        "A recorded load (Azure CSV or Mooncake JSON lines): its lengths, and its times unless --rate or"
        " --concurrency is given.",
        metavar="FILE",
    ),
]
TimeScale = Annotated[float, _option(_LOAD, "Multiplies the trace's gaps: 0.5 is twice as fast.", metavar="NUMBER")]
LengthScale = Annotated[float, _option(_LOAD, "Multiplies the trace's lengths.", metavar="NUMBER")]
NumRequests = Annotated[str, _option(_LOAD, "Requests per server and round.", metavar="COUNT")]
Rounds = Annotated[
    int | None, _option(_LOAD, "Rounds, interleaved between servers; by default 1, with peers 3.", metavar="COUNT")
]
Warmups = Annotated[int, _option(_LOAD, "Requests to each server before, not reported.", metavar="COUNT")]
Seed = Annotated[int, _option(_LOAD, "The same seed gives the same load.", metavar="NUMBER")]
Quick = Annotated[bool, _option(_LOAD, "A small load that ends within 5 minutes.", "--quick")]
TimeLimit = Annotated[
    float | None, _option(_LOAD, "Stop the rounds after this time; what ended by then counts.", metavar="SECONDS")
]
Timeout = Annotated[float, _option(_LOAD, "A request without a whole answer by then has failed.", metavar="SECONDS")]

InputLen = Annotated[str, _option(_LENGTHS, "Tokens: 512, 32k, uniform:128:1k or lognormal:512:0.8.", metavar="TOKENS")]
OutputLen = Annotated[str, _option(_LENGTHS, "Tokens, spelled the same.", metavar="TOKENS")]
MaxInputLen = Annotated[
    str | None, _option(_LENGTHS, "Cut longer prompts; the report says how many.", metavar="TOKENS")
]
MaxOutputLen = Annotated[
    str | None, _option(_LENGTHS, "Cut longer answers; the report says how many.", metavar="TOKENS")
]
PrefixLen = Annotated[
    str, _option(_LENGTHS, "Tokens shared by all prompts, before those of --input-len.", metavar="TOKENS")
]
Prompts = Annotated[Path | None, _option(_LENGTHS, "A file of prompts: one per line, or .jsonl.", metavar="FILE")]
IgnoreEos = Annotated[bool, _option(_LENGTHS, "Ask for answers of exactly the wanted length.")]
Temperature = Annotated[float, _option(_LENGTHS, "Of every request.", metavar="NUMBER")]
ExtraBody = Annotated[str | None, _option(_LENGTHS, "Merged into every request.", metavar="JSON")]

SloTtft = Annotated[float | None, _option(_GOALS, "The most a good request's TTFT takes.", metavar="MS")]
SloTpot = Annotated[float | None, _option(_GOALS, "The most a good request's TPOT takes.", metavar="MS")]
SloE2e = Annotated[float | None, _option(_GOALS, "The most a good request takes.", metavar="MS")]
SloOf = Annotated[
    str | None, _option(_GOALS, "Instead: multiples of this server's TTFT and TPOT without load.", metavar="NAME")
]
TtftFactor = Annotated[float, _option(_GOALS, "The multiple of the TTFT, with --slo-of.", metavar="NUMBER")]
TpotFactor = Annotated[float, _option(_GOALS, "The multiple of the TPOT, with --slo-of.", metavar="NUMBER")]

JsonFile = Annotated[Path | None, _option(_OUTPUT, "Write the report.", "--json", metavar="FILE")]
RequestsFile = Annotated[
    Path | None, _option(_OUTPUT, "Write one JSON line per request.", "--requests", metavar="FILE")
]


def read_targets(first: Target, peers: Sequence[str], keys: Sequence[str], models: Sequence[str]) -> tuple[Target, ...]:
    """Return the subject and its peers, each with its own key and model only."""
    addresses = read_pairs(peers, "peer", "URL")
    secrets, names = read_pairs(keys, "peer-key", "KEY"), read_pairs(models, "peer-model", "MODEL")
    for param, given in (("peer-key", secrets), ("peer-model", names)):
        for name in given:
            if name not in addresses:
                known = ", ".join(addresses) or "none"
                raise InvalidRequest(f"{param} names {name!r}, which is no peer; peers: {known}.", param=param)
    return (first, *(Target(name, url, secrets.get(name), names.get(name)) for name, url in addresses.items()))


def read_arrivals(rate: str | None, concurrency: int | None) -> Arrivals:
    """Return how requests arrive; "inf" is no rate: all at once, or at the trace's times."""
    if rate is not None and concurrency is not None:
        raise InvalidRequest("rate and concurrency are both given; a load has one of them.", param="rate")
    if rate is None:
        return Arrivals(None, concurrency)
    try:
        rate_per_s = float(rate)
    except ValueError:
        rate_per_s = math.nan
    if not rate_per_s > 0:
        raise InvalidRequest(f"rate is {rate!r}; it must be a number above 0, or inf.", param="rate")
    return Arrivals(rate_per_s if math.isfinite(rate_per_s) else None, None)


def read_extra(text: str | None) -> Mapping[str, Any]:
    if text is None:
        return {}
    try:
        extra = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"extra-body is no JSON: {error}.", param="extra-body") from error
    if not isinstance(extra, dict):
        raise InvalidRequest(f"extra-body is {text!r}; it must be a JSON object.", param="extra-body")
    return extra


def try_limit(text: str | None, param: str) -> int | None:
    return None if text is None else parse_integer(text, param)


def try_seconds(milliseconds: float | None, param: str) -> float | None:
    if milliseconds is None:
        return None
    check_range(param, milliseconds, 0.0)
    return milliseconds / 1000


def check_whose(base_url: str, *, starts_servers: bool) -> None:
    """Raise InvalidRequest where a server is named that would not be measured, since the run starts its own."""
    if starts_servers and base_url != DEFAULT_URL:
        raise InvalidRequest(
            "base-url and start are both given; beside started servers another one is --peer NAME=URL.",
            param="base-url",
        )


def check_writable(path: Path | None, param: str) -> None:
    """Raise InvalidRequest now where a result could not be written to `path` after the run."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise InvalidRequest(f"{param} is {str(path)!r}, which cannot be written: {error}.", param=param) from error


def make_quick(settings: ServeSettings, *, starts_servers: bool = False) -> ServeSettings:
    """Return the same run cut down so that it ends within five minutes, whatever the servers do."""
    limit_s = _QUICK_STARTED_LIMIT_S if starts_servers else _QUICK_LIMIT_S
    workload = settings.workload
    small = replace(
        workload,
        num_requests=min(workload.num_requests, _QUICK_REQUESTS),
        max_input_len=min(workload.max_input_len or _QUICK_INPUT_LEN, _QUICK_INPUT_LEN),
        max_output_len=min(workload.max_output_len or _QUICK_OUTPUT_LEN, _QUICK_OUTPUT_LEN),
    )
    return replace(
        settings,
        workload=small,
        limit_s=min(settings.limit_s or limit_s, limit_s),
        prepare_limit_s=_QUICK_PREPARE_S,
    )

"""The options that several commands have in common, one by one and in groups (see `groups.py`).

Owns names, help, defaults and parsing. Knows no command's work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, cast

import typer

from kea.bench.integers import parse_bytes, parse_integer
from kea.engine.config import DTYPES
from kea.errors import InvalidRequest
from kea.models.base import KV_CACHE_DTYPES
from kea.program.output import OutputSettings, parse_output

ENGINE, SERVER, SAMPLING = "Engine", "Server", "Sampling"


def whole_number(name: str) -> Callable[[str], int]:
    """Return a parser of 512, 32k or 32K for the option `name`."""
    return lambda text: parse_integer(str(text), name)


def num_bytes(name: str) -> Callable[[str], int]:
    """Return a parser of 512MiB, 4GiB or 4GB for the option `name`."""
    return lambda text: parse_bytes(str(text), name)


def milliseconds(name: str, *, or_none: bool = False) -> Callable[[str], float]:
    """Return a parser of a time above 0 (`or_none`: or of 0) in milliseconds for the option `name`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (0.0 < value < math.inf or (or_none and value == 0.0)):
            allowed = "above 0, or 0" if or_none else "above 0"
            raise InvalidRequest(f"{name} is {text!r}; it must be a number of milliseconds {allowed}.", param=name)
        return value

    return parse


def _engine(text: str, **settings: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=ENGINE, **settings)


def _sampling(text: str, **settings: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=SAMPLING, show_default=False, **settings)


Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A model directory, or the id of a Hugging Face model. Left out: the embedded model.",
    ),
]

# Where a program runs that has a server at its choice.
Url = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Run on the Kea server at this address, not on an engine in this process."),
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="KEA_API_KEY", show_envvar=True, metavar="KEY", help="The key of that server.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="MODEL", help="Model of the engine in this process: a directory or a Hugging Face id."
    ),
]

# The engine.
MaxModelLen = Annotated[
    int | None,
    _engine(
        "Longest context in tokens, such as 4096 or 32K; the model's own by default.",
        parser=whole_number("max-model-len"),
        metavar="TOKENS",
    ),
]
MaxNumSeqs = Annotated[
    int, _engine("Most sequences in one step.", parser=whole_number("max-num-seqs"), metavar="COUNT")
]
MaxNumBatchedTokens = Annotated[
    int, _engine("Most tokens in one step.", parser=whole_number("max-num-batched-tokens"), metavar="TOKENS")
]
KvMemory = Annotated[
    int | None,
    _engine(
        "Memory for keys and values, such as 4GiB; a quarter of what is free by default.",
        parser=num_bytes("kv-memory"),
        metavar="SIZE",
    ),
]
Dtype = Annotated[str, _engine(f"The arithmetic: {', '.join(DTYPES)}.", metavar="NAME")]
Device = Annotated[str, _engine("auto (a GPU if there is one), cpu, cuda or cuda:N.", metavar="NAME")]
NumThreads = Annotated[
    int | None, _engine("Threads of the engine on a CPU, at most one per core, as by default.", metavar="COUNT")
]
Quantize = Annotated[
    str | None, _engine("int8: weights in 8 bits, on a CPU. Faster, and no longer exactly the model.", metavar="NAME")
]
KvCacheDtype = Annotated[
    str,
    _engine(
        f"How keys and values are kept: {', '.join(KV_CACHE_DTYPES)}. On a CPU float16 takes half the memory, int8 a "
        "quarter, and both are faster in long contexts and no longer exact; auto keeps them as they are.",
        metavar="NAME",
    ),
]
Revision = Annotated[str | None, _engine("Branch, tag or commit of a Hugging Face model.", metavar="NAME")]
TpotObjectiveMs = Annotated[
    float | None,
    _engine(
        "Let prompts wait where a step would take longer than this for those that already write; no bound by default.",
        parser=milliseconds("tpot-objective-ms"),
        metavar="MS",
    ),
]
MaxBurstMs = Annotated[
    float,
    _engine(
        "Compute several tokens at a time for up to so long where nothing else is to be done; 0: one at a time.",
        parser=milliseconds("max-burst-ms", or_none=True),
        metavar="MS",
    ),
]
NumSpeculativeTokens = Annotated[
    int,
    _engine(
        "Guess so many next tokens by prompt lookup and verify them at once; 0 guesses none. Changes no output.",
        metavar="COUNT",
    ),
]
PromptLookupMin = Annotated[
    int, _engine("Guess only where at least so many last tokens stood in the context before.", metavar="COUNT")
]
PromptLookupMax = Annotated[
    int, _engine("Prefer places where up to so many last tokens stood before.", metavar="COUNT")
]

# Sampling. What is left out is the server's default.
MaxTokens = Annotated[
    int | None,
    _sampling(
        "Most tokens that are written; 512, or what the context has room for, by default.",
        parser=whole_number("max-tokens"),
        metavar="TOKENS",
    ),
]
Temperature = Annotated[
    float | None,
    _sampling("0 always takes the likeliest token; 0.7 with the embedded model, else 1 by default.", metavar="NUMBER"),
]
TopP = Annotated[
    float | None,
    _sampling(
        "Draw from the likeliest tokens that have this share of probability; 0.9 with the embedded model.",
        metavar="NUMBER",
    ),
]
TopK = Annotated[int | None, _sampling("Draw from this many of the likeliest tokens.", metavar="COUNT")]
Seed = Annotated[int | None, _sampling("The same seed writes the same text.", metavar="NUMBER")]
Stop = Annotated[list[str] | None, _sampling("Stop in front of this text. Repeatable.", metavar="TEXT")]


# Greedily, the embedded model repeats itself for ever where a text has no end in sight.
EMBEDDED_SAMPLING = {"temperature": 0.7, "top_p": 0.9}


@dataclass(frozen=True, slots=True)
class Where:
    """The server that runs a program; without a URL it runs in this process."""

    url: Url = None
    api_key: ApiKey = None


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The engine in this process."""

    device: Device = "auto"
    dtype: Dtype = "auto"
    kv_memory: KvMemory = None
    max_model_len: MaxModelLen = None
    num_threads: NumThreads = None
    quantize: Quantize = None
    kv_cache_dtype: KvCacheDtype = "auto"


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How a text is written."""

    max_tokens: MaxTokens = None
    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    seed: Seed = None
    stop: Stop = None

    def to_settings(self, *, is_embedded: bool) -> OutputSettings:
        """Return the settings of an output: what was given, for the embedded model over its own defaults.

        Raises `InvalidRequest` for a value that is out of range.
        """
        given = {name: value for name, value in asdict(self).items() if value is not None and value != []}
        settings = {**EMBEDDED_SAMPLING, **given} if is_embedded else given
        parse_output(settings, "output")
        return cast("OutputSettings", settings)

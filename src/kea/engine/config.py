"""The engine's settings and how they meet the machine's and the model's facts. Pure: no torch, no clocks."""

from __future__ import annotations

from dataclasses import dataclass

from kea.errors import InvalidRequest, check_range
from kea.models.base import KV_CACHE_DTYPES, QUANTIZATIONS, ModelFacts
from kea.types import Speculation

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class DecodingConfig:
    """How running generations are served.

    `tpot_objective_s`: prefill chunks are sized so that a step with decoding contexts is predicted to stay below it.
    `speculation`: of generations that do not say themselves (None: nothing is guessed). `max_burst_s`: how long a step
    may compute several tokens per context where nothing else is to be done (0: one token a step). `overlap`: a step is
    launched before the tokens of the one before it are read (None: on a GPU).
    """

    tpot_objective_s: float | None = None
    speculation: Speculation | None = None
    max_burst_s: float = 0.025
    overlap: bool | None = None

    def __post_init__(self) -> None:
        check_range("max_burst_s", self.max_burst_s, 0.0)
        if self.tpot_objective_s is not None:
            check_range("tpot_objective_s", self.tpot_objective_s, 1e-6)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine runs and the limits of a step.

    `kv_memory_bytes`: budget of the page pool (None: a quarter of what is free, at most what the model can use).
    `max_model_len`: tokens of one context (None: the model's own). `max_num_batched_tokens`: tokens of one step.
    `num_threads`: of torch (None: the machine's cores). `quantize`: int8 rounds the weights (None: as they are).
    `kv_cache_dtype`: float16 and int8 round keys and values, so that the budget buys more pages (auto: as they are).
    """

    model: str
    dtype: str = "auto"
    device: str = "auto"
    backend: str = "auto"
    kv_memory_bytes: int | None = None
    page_tokens: int = 16
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    decoding: DecodingConfig = DecodingConfig()
    num_threads: int | None = None
    revision: str | None = None
    quantize: str | None = None
    kv_cache_dtype: str = "auto"

    def __post_init__(self) -> None:
        for name, names in (("dtype", DTYPES), ("kv_cache_dtype", KV_CACHE_DTYPES)):
            if getattr(self, name) not in names:
                raise InvalidRequest(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(names)}.", param=name)
        if self.quantize not in (None, *QUANTIZATIONS):
            allowed = ", ".join(QUANTIZATIONS)
            raise InvalidRequest(
                f"quantize is {self.quantize!r}; it must be one of {allowed}, or left out.", param="quantize"
            )
        check_range("page_tokens", self.page_tokens, 1, 1024)
        check_range("max_num_seqs", self.max_num_seqs, 1)
        check_range("max_num_batched_tokens", self.max_num_batched_tokens, 1)
        for name in ("kv_memory_bytes", "max_model_len", "num_threads"):
            value = getattr(self, name)
            if value is not None:
                check_range(name, value, 1)


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The limits that hold once model and memory are known. All in tokens, pages or contexts.

    `can_draw`: the model draws tokens itself, and nothing overlaps.
    """

    num_pages: int
    page_tokens: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    tpot_objective_s: float | None = None
    speculation: Speculation | None = None
    max_burst_s: float = 0.0
    overlaps: bool = False
    can_draw: bool = False


def resolve_limits(config: EngineConfig, facts: ModelFacts, free_bytes: int) -> StepLimits:
    """Return the limits for this model on a machine with `free_bytes` of memory left after the weights.

    Raises `InvalidRequest` where `max_model_len` is longer than the model's positions, or than the page pool.
    """
    max_len = config.max_model_len or facts.max_len
    if max_len > facts.max_len:
        raise InvalidRequest(
            f"max_model_len is {max_len}; {facts.name} has positions for {facts.max_len} tokens.", param="max_model_len"
        )
    page_bytes = facts.kv_token_bytes * config.page_tokens
    useful_pages = config.max_num_seqs * -(-max_len // config.page_tokens)
    num_pages = _num_pages(config, page_bytes, useful_pages, free_bytes)
    max_len = longest_context(config, max_len, num_pages, facts.kv_token_bytes)
    overlaps = facts.device != "cpu" if config.decoding.overlap is None else config.decoding.overlap
    return StepLimits(
        num_pages,
        config.page_tokens,
        max_len,
        config.max_num_seqs,
        config.max_num_batched_tokens,
        config.decoding.tpot_objective_s,
        config.decoding.speculation,
        0.0 if overlaps else config.decoding.max_burst_s,  # of what is computed ahead, one way
        overlaps,
    )


def longest_context(config: EngineConfig, max_len: int, num_pages: int, kv_token_bytes: int) -> int:
    """Return how many tokens of a context, at most `max_len`, a pool of so many pages holds.

    Raises `InvalidRequest` where that is less than the length that was asked for, or than a page.
    """
    pool_tokens = num_pages * config.page_tokens
    if pool_tokens < max_len and (config.max_model_len is not None or pool_tokens < config.page_tokens):
        num_bytes = config.kv_memory_bytes or pool_tokens * kv_token_bytes
        raise InvalidRequest(
            f"A KV memory of {num_bytes:,} bytes holds {pool_tokens} tokens; "
            f"one context may need {max_len} of {kv_token_bytes:,} bytes each.",
            param="kv_memory_bytes",
            hint="Give more memory, or a smaller max_model_len.",
        )
    return min(max_len, pool_tokens)


def _num_pages(config: EngineConfig, page_bytes: int, useful_pages: int, free_bytes: int) -> int:
    if config.kv_memory_bytes is not None:
        return config.kv_memory_bytes // page_bytes
    return max(1, min(useful_pages, free_bytes // 4 // page_bytes))

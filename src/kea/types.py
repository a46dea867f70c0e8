"""Values that cross rooms: sampling, stopping, chunks of output, criteria. Knows nothing else of ours but `errors`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, NamedTuple

from kea.errors import InvalidRequest, check_range

MAX_TOKEN_ID = 2**31 - 1
MAX_STOP_TOKEN_IDS = 16_384
MAX_STOP_STRINGS = 256
MAX_STOP_CHARS = 16_384
"""Of all stop strings together: every character of an output is compared with each of them, on the engine's thread."""


class Criteria(Enum):
    """What the reader of a variable wants (Parrot, section 4.1).

    It is noted with the variable; the scheduler does not read it yet.
    """

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    TTFT = "TTFT"
    TPOT = "TPOT"


class FinishReason(Enum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 keep all tokens."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        check_range("temperature", self.temperature, 0.0, 100.0)
        check_range("top_p", self.top_p, 0.0, 1.0)
        check_range("top_k", self.top_k, 0, 2**63 - 1)
        check_range("min_p", self.min_p, 0.0, 1.0)
        check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        check_range("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        if self.top_p == 0.0:
            raise InvalidRequest("top_p is 0; it must be above 0 and at most 1.", param="top_p")
        for token_id, bias in self.logit_bias.items():
            check_range(f"logit_bias[{token_id}]", bias, -100.0, 100.0)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class Stopping:
    """When a generation ends. Stop strings are never emitted; stop tokens and end-of-sequence are not either."""

    max_tokens: int
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        check_range("max_tokens", self.max_tokens, 1)
        check_range("min_tokens", self.min_tokens, 0, self.max_tokens)
        if any(not text for text in self.stop):
            raise InvalidRequest(
                "stop holds an empty string; a stop string needs at least one character.", param="stop"
            )
        _check_size("stop", len(self.stop), MAX_STOP_STRINGS, "strings")
        _check_size("stop", sum(map(len, self.stop)), MAX_STOP_CHARS, "characters")
        _check_size("stop_token_ids", len(self.stop_token_ids), MAX_STOP_TOKEN_IDS, "ids")
        for token_id in self.stop_token_ids:
            check_range("stop_token_ids", token_id, 0, MAX_TOKEN_ID)


def _check_size(name: str, size: int, most: int, unit: str) -> None:
    if size > most:
        raise InvalidRequest(f"{name} has {size} {unit}; at most {most} are allowed.", param=name)


@dataclass(frozen=True, slots=True)
class Constraint:
    """A grammar that the output must match; `source` is a JSON schema, an expression, or choices as a JSON list."""

    kind: Literal["json_schema", "json_object", "regex", "choice", "grammar"]
    source: str


@dataclass(frozen=True, slots=True)
class Speculation:
    """Guess next tokens by prompt lookup and verify them together; what is written does not change.

    The guesses are the `num_speculative_tokens` (0: none) that followed the context's last n tokens where these stood
    before, for the largest n from `prompt_lookup_max` down to `prompt_lookup_min` for which they did. The names are
    vLLM's.
    """

    num_speculative_tokens: int = 8
    prompt_lookup_min: int = 2
    prompt_lookup_max: int = 4

    def __post_init__(self) -> None:
        check_range("num_speculative_tokens", self.num_speculative_tokens, 0, 64)
        check_range("prompt_lookup_min", self.prompt_lookup_min, 1, 64)
        check_range("prompt_lookup_max", self.prompt_lookup_max, self.prompt_lookup_min, 64)


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """One generation: how tokens are drawn, when it stops, what it must match, what is reported.

    `logprobs` counts the alternatives reported per token (0: only the chosen token; None: nothing).
    `speculation`: how next tokens are guessed (None: as the engine is set).
    `skip_special_tokens`: special tokens have no text; without it they appear (parsers of tool calls read them).
    """

    stopping: Stopping
    sampling: Sampling = field(default_factory=Sampling)
    constraint: Constraint | None = None
    logprobs: int | None = None
    skip_special_tokens: bool = True
    speculation: Speculation | None = None

    def __post_init__(self) -> None:
        if self.logprobs is not None:
            check_range("logprobs", self.logprobs, 0, 20)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's natural-log probability, before temperature and penalties as OpenAI reports it, and its rivals."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What one generation cost. Times in seconds: waiting for admission, computing the prompt, drawing tokens.

    `prompt_tokens` is the length of the context when the generation began; `cached_tokens` of them were found in the
    prefix tree or already computed for an earlier output of the same context.
    """

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    waiting_s: float
    prefill_s: float
    decode_s: float
    num_preemptions: int = 0


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a generation.

    The context keeps `context_len` tokens: those of the output that lie wholly before the stop. `residual` is text that
    was emitted but whose token also held the beginning of the stop: whoever appends next must append it first.
    `stop` is the stop string or stop token id that matched.
    """

    reason: FinishReason
    usage: Usage
    context_len: int
    residual: str = ""
    stop: str | int | None = None


class Chunk(NamedTuple):
    """A piece of output: the tokens of one or more steps, the text that became certain, the end if it is reached."""

    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    finish: Finish | None = None

    def followed_by(self, later: Chunk) -> Chunk:
        """Return this piece and the next one as one."""
        return Chunk(
            self.token_ids + later.token_ids,
            self.text + later.text,
            self.logprobs + later.logprobs,
            self.prompt_logprobs if later.prompt_logprobs is None else later.prompt_logprobs,
            later.finish,
        )

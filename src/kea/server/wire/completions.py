"""Bodies of /v1/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kea.server.wire.base import Body, Integer, Reply
from kea.server.wire.sampling import UNSUPPORTED_SAMPLING, SamplingFields, TokenId, Tokens
from kea.server.wire.usage import UsageReply, UsageSoFar

FAIL_FAST = Field(fail_fast=True)
TokenIds = Annotated[list[TokenId], FAIL_FAST]
Prompt = str | Annotated[list[str], FAIL_FAST] | TokenIds | Annotated[list[TokenIds], FAIL_FAST]
TokenLogprobs = dict[str, dict[str, Any]] | None


class StreamOptions(Body):
    """What a stream carries beside the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(
        default=None, description="With include_usage: every chunk tells the tokens of its choice so far."
    )
    include_obfuscation: bool | None = Field(default=None, description="Accepted, without effect: nothing is padded.")


def tells_usage(options: StreamOptions | None) -> tuple[bool, bool]:
    """Return whether a stream ends with its usage, and whether each of its chunks has that of its choice so far."""
    at_end = options is not None and bool(options.include_usage)
    return at_end, at_end and options is not None and bool(options.continuous_usage_stats)


class CompletionBody(SamplingFields):
    """A prompt (or several) to continue."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **UNSUPPORTED_SAMPLING,
        "audio": (),
        "best_of": (1,),
        "functions": ([],),
        "messages": (),
        "suffix": ("",),
        "tools": ([],),
    }

    model: str | None = None
    prompt: Prompt
    max_tokens: Tokens | None = 16
    n: Integer | None = Field(default=None, ge=1, le=1024)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = None
    logprobs: Integer | None = Field(default=None, ge=0, le=20)
    prompt_logprobs: Integer | None = Field(default=None, ge=0, le=20)
    add_special_tokens: bool | None = None
    user: str | None = Field(default=None, description="Accepted, without effect.")


class LegacyLogprobs(Reply):
    """Log-probabilities in the form of /v1/completions: parallel lists over the tokens."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(Reply):
    """One continuation, or a piece of it in a stream."""

    index: int
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: str | int | None
    prompt_logprobs: list[TokenLogprobs] | None = None


class CompletionReply(Reply):
    """A completion, or a piece of it in a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageReply | UsageSoFar | None = None

"""The answers of /v1/chat/completions, whole and in pieces."""

from __future__ import annotations

from typing import Any, Literal

from kea.server.wire.base import Reply
from kea.server.wire.usage import UsageReply, UsageSoFar

FinishReason = Literal["stop", "length", "tool_calls"]


class TopLogprobReply(Reply):
    """A rival of a token."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobReply(Reply):
    """A token that was written, and its rivals."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprobReply]


class ChatLogprobs(Reply):
    """Log-probabilities of the tokens of an answer, or of a piece of it."""

    content: list[TokenLogprobReply]


class FunctionCallReply(Reply):
    """The function that is called. In a stream, the name comes first and the arguments follow in pieces."""

    name: str | None = None
    arguments: str


class ToolCallReply(Reply):
    """A tool call, or a piece of one."""

    index: int | None = None
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCallReply


class MessageReply(Reply):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallReply] | None = None


class ChatChoice(Reply):
    """One whole answer."""

    index: int
    message: MessageReply
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None


class ChatReply(Reply):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageReply
    prompt_logprobs: list[dict[str, dict[str, Any]] | None] | None = None


class DeltaReply(Reply):
    """What a piece adds to the assistant's turn."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallReply] | None = None


class ChatChunkChoice(Reply):
    """A piece of one answer."""

    index: int
    delta: DeltaReply
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None = None


class ChatChunk(Reply):
    """A frame of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: UsageReply | UsageSoFar | None = None

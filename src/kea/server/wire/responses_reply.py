"""The answers of /v1/responses: the response, its items, the events of its stream."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from kea.server.wire.base import Reply
from kea.server.wire.chat_reply import TokenLogprobReply

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class PartReply(Reply):
    """A part of an item: text of the answer, or of the reasoning."""

    type: Literal["output_text", "reasoning_text"]
    text: str
    annotations: list[Any] = Field(default_factory=list)
    logprobs: list[TokenLogprobReply] = Field(default_factory=list)


class ItemReply(Reply):
    """A message, the reasoning before it, or a call of a function; each has its own of the optional fields."""

    id: str
    type: Literal["message", "reasoning", "function_call"]
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[PartReply] = Field(default_factory=list)
    summary: list[Any] = Field(default_factory=list)
    call_id: str = ""
    name: str = ""
    arguments: str = ""


class ErrorReply(Reply):
    """Why a response failed."""

    code: str
    message: str


class IncompleteReply(Reply):
    """Why a response ended early."""

    reason: Literal["max_output_tokens"]


class InputDetails(Reply):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Reply):
    reasoning_tokens: int


class ResponseUsage(Reply):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseReply(Reply):
    """A response, as it is now."""

    id: str
    object: Literal["response"]
    created_at: float
    completed_at: float | None
    status: Status
    background: bool
    error: ErrorReply | None
    incomplete_details: IncompleteReply | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[ItemReply]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, Any]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None


class ResponseEvent(Reply):
    """An event of a stream; which of the optional fields it has is told by its type."""

    type: str
    sequence_number: int
    response: ResponseReply | None = None
    output_index: int = 0
    content_index: int = 0
    item_id: str = ""
    item: ItemReply | None = None
    part: PartReply | None = None
    delta: str = ""
    text: str = ""
    name: str = ""
    arguments: str = ""
    logprobs: list[TokenLogprobReply] = Field(default_factory=list)


class DeletedReply(Reply):
    """A response that is no longer stored."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]

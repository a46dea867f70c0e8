"""Bodies of /v1/models, /tokenize, /detokenize, /health and /version."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from kea.server.wire.base import Body, Reply
from kea.server.wire.chat import ChatMessage, Tool
from kea.server.wire.completions import TokenIds


class ModelReply(Reply):
    """One name of a model. `root`: what was loaded. `max_model_len`: tokens of its context."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int


class ModelsReply(Reply):
    """All names."""

    object: Literal["list"]
    data: list[ModelReply]
    models: list[str]


class TokenizeBody(Body):
    """A prompt, or messages, to turn into token ids."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1)
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class TokenizeReply(Reply):
    """The ids of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeBody(Body):
    """Token ids to turn into text."""

    model: str | None = None
    tokens: TokenIds


class DetokenizeReply(Reply):
    """The text of ids."""

    prompt: str


class HealthReply(Reply):
    """Requests are taken and the engine lives; otherwise the answer is an error with status 503."""

    status: Literal["ok"]


class VersionReply(Reply):
    version: str

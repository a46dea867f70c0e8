"""The body of /v1/chat/completions: messages, tools, and how the answer is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from kea.server.wire.base import Body, Integer
from kea.server.wire.completions import StreamOptions
from kea.server.wire.sampling import UNSUPPORTED_SAMPLING, SamplingFields, Tokens

NAME_PATTERN = r"^[a-zA-Z0-9_.:-]{1,128}$"
WITHOUT_EFFECT = "Accepted, without effect."
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ContentPart(Body):
    """A part of a message. Only text is served; images, audio and files are refused by their type."""

    type: str
    text: str | None = None


class FunctionCall(Body):
    """A function that an earlier answer called, with its arguments as JSON text."""

    name: str = Field(pattern=NAME_PATTERN)
    arguments: str = ""


class ToolCall(Body):
    """A tool call of an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Body):
    """A turn of the conversation."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"audio": (), "function_call": ()}

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class FunctionTool(Body):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str = Field(pattern=NAME_PATTERN)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool. Only functions are served."""

    type: Literal["function"]
    function: FunctionTool


class NamedFunction(Body):
    name: str = Field(pattern=NAME_PATTERN)


class NamedToolChoice(Body):
    """The one function that must be called."""

    type: Literal["function"]
    function: NamedFunction


class ChatBody(SamplingFields):
    """A conversation to continue with the assistant's turn."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **UNSUPPORTED_SAMPLING,
        "audio": (),
        "best_of": (1,),
        "chat_template": (),
        "continue_final_message": (False,),
        "documents": ([],),
        "echo": (False,),
        "function_call": ("none",),
        "functions": ([],),
        "mm_processor_kwargs": ({},),
        "modalities": (["text"],),
        "moderation": (),
        "prediction": (),
        "prompt": (),
        "store": (False,),
        "suffix": ("",),
        "thinking_token_budget": (),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    model: str | None = None
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: Tokens | None = Field(default=None, ge=1)
    max_completion_tokens: Tokens | None = Field(default=None, ge=1)
    n: Integer | None = Field(default=None, ge=1, le=1024)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Integer | None = Field(default=None, ge=0, le=20)
    prompt_logprobs: Integer | None = Field(default=None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    include_reasoning: bool | None = None
    reasoning_effort: Effort | None = None
    metadata: dict[str, str] | None = Field(default=None, description=WITHOUT_EFFECT)
    prompt_cache_key: str | None = Field(default=None, description=WITHOUT_EFFECT)
    safety_identifier: str | None = Field(default=None, description=WITHOUT_EFFECT)
    user: str | None = Field(default=None, description=WITHOUT_EFFECT)

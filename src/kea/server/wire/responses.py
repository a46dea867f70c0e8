"""The body of /v1/responses: input items, tools, and how the answer is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kea.server.wire.base import Body, Integer
from kea.server.wire.chat import NAME_PATTERN, WITHOUT_EFFECT, ContentPart, Effort, FunctionTool
from kea.server.wire.sampling import UNSUPPORTED_SAMPLING, ResponseFormat, SamplingFields, Tokens
from kea.types import Constraint

LOGPROBS = "message.output_text.logprobs"


class InputItem(Body):
    """A piece of the conversation: a message, a function's call or its output, reasoning. Other types are refused."""

    type: str | None = None
    id: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None
    summary: list[ContentPart] | None = None


class FlatFunctionTool(FunctionTool):
    """A function that the model may call. Other kinds of tools are refused."""

    type: Literal["function"]


class FlatToolChoice(Body):
    """The one function that must be called."""

    type: Literal["function"]
    name: str = Field(pattern=NAME_PATTERN)


class FlatFormat(Body):
    """What the text must match."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    def to_constraint(self) -> Constraint | None:
        given = self.schema_ if self.type == "json_schema" else None
        nested = {"type": self.type, "json_schema": None if given is None else {"schema": given}}
        return ResponseFormat.model_validate(nested).to_constraint()


class TextConfig(Body):
    """How the text is wanted."""

    format: FlatFormat | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningConfig(Body):
    """How much is thought. The whole reasoning is told, never a summary of it."""

    effort: Effort | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None


class ResponseBody(SamplingFields):
    """A conversation to continue, perhaps one that an earlier response ended."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **UNSUPPORTED_SAMPLING,
        "access_programs": (),
        "background_options": (),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        "max_tool_calls": (),
        "messages": (),
        "moderation": (),
        "n": (1,),
        "prompt": (),
    }

    model: str | None = None
    input: str | list[InputItem]
    instructions: str | None = None
    max_output_tokens: Tokens | None = Field(default=None, ge=1)
    stream: bool | None = None
    stream_options: dict[str, Any] | None = Field(default=None, description=WITHOUT_EFFECT)
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    tools: list[FlatFunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    top_logprobs: Integer | None = Field(default=None, ge=0, le=20)
    include: list[Literal["message.output_text.logprobs"]] | None = None
    truncation: Literal["disabled"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        default=None, max_length=16
    )
    prompt_cache_key: str | None = Field(default=None, description=WITHOUT_EFFECT)
    safety_identifier: str | None = Field(default=None, description=WITHOUT_EFFECT)
    user: str | None = Field(default=None, description=WITHOUT_EFFECT)

    def to_constraint(self) -> Constraint | None:
        if self.text is not None and self.text.format is not None:
            return self.text.format.to_constraint()
        return super().to_constraint()

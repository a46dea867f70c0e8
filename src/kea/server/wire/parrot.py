"""Bodies of Parrot's original API. Unknown keys are ignored on these routes, as its client expects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kea.server.wire.base import Body, Integer, Reply

SessionId = Annotated[Integer, Field(ge=0, lt=2**53)]


class OpenSessionBody(Body):
    """`api_key`: the key where keys are on; anything where they are off."""

    api_key: str | None = None


class SessionAuthBody(Body):
    session_auth: str | None = None


class ParrotBody(SessionAuthBody):
    """What all further requests carry."""

    session_id: SessionId


class ParrotSampling(Body):
    """How an output is written, in Parrot's words. Penalties of 0 are off."""

    temperature: float = Field(default=1.0, ge=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_gen_length: Integer = Field(default=512, ge=1, le=2**31 - 1)
    ignore_tokenizer_eos: bool = False
    stop_token_ids: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] | None = None
    stop_str: str | list[str] | None = None
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    n: Integer = 1
    best_of: Integer = 1
    logit_bias: dict[str, float] | None = None
    repetition_penalty: float = Field(default=0.0, ge=0, le=100)
    length_penalty: float = 0.0


class Parameter(Body):
    """An input (a value, or a variable) or an output of a call."""

    name: str = Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$", max_length=200)
    is_output: bool
    var_id: str | None = None
    value: Any = None
    sampling_config: ParrotSampling | None = None


class SemanticCallBody(ParrotBody):
    """One call of a semantic function."""

    func_name: str = Field(min_length=1, max_length=200)
    template: str
    parameters: list[Parameter]
    models: list[str] | None = None
    model_type: Literal["token_id", "text"] | None = None
    remove_pure_fill: bool | None = None
    cache_prefix: bool | None = None
    output_criteria: str | None = None
    fuse_fill: bool | None = None


class NativeCallBody(ParrotBody):
    """One call of a function that the operator registered."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"timeout": ()}

    func_name: str = Field(min_length=1, max_length=200)
    func_code: str | None = None
    parameters: list[Parameter]
    output_criteria: str | None = None


class NewVariableBody(ParrotBody):
    var_name: str = Field(min_length=1, max_length=200)


class SetVariableBody(ParrotBody):
    content: str


class GetVariableBody(ParrotBody):
    criteria: str | None = None


class OpenSessionReply(Reply):
    session_id: int
    session_auth: str


class ParameterInfo(Reply):
    """What became of a parameter: its variable."""

    parameter_name: str
    placeholder_name: str
    is_output: bool
    var_name: str
    var_id: str
    var_desc: str
    var_scope: str


class CallReply(Reply):
    """A call that was accepted."""

    request_id: int
    session_id: int
    param_info: list[ParameterInfo]


class NewVariableReply(Reply):
    var_id: str


class ContentReply(Reply):
    content: str


class VariableInfo(Reply):
    var_id: str
    var_name: str
    state: str


class VariablesReply(Reply):
    vars: list[VariableInfo]

"""The request fields that shape a generation, shared by all OpenAI-compatible endpoints, and what they become."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field

from kea.errors import InvalidRequest
from kea.server.wire.base import Body, Integer, unsupported
from kea.types import Constraint, Sampling, Speculation

T = TypeVar("T")
MAX_INT64 = 2**63 - 1
SEED_MODULUS = 2**63
Tokens = Annotated[Integer, Field(ge=0, le=2**31 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]

GUIDED = "vLLM's older name of structured_outputs.{}."

UNSUPPORTED_SAMPLING: Mapping[str, tuple[Any, ...]] = {
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "cache_salt": ("",),
    "guided_decoding_backend": (),
    "kv_transfer_params": ({},),
    "length_penalty": (1, 0),
    "logits_processors": ([],),
    "lora_adapter": (),
    "lora_request": (),
    "prompt_embeds": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "service_tier": ("auto", "default"),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
}


class JsonSchemaFormat(Body):
    """The named schema inside `response_format`. `strict` adds nothing: the schema is always enforced."""

    name: str = "output"
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """OpenAI's way to ask for structured output."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    def to_constraint(self) -> Constraint | None:
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Constraint("json_object", "")
        if self.json_schema is None or self.json_schema.schema_ is None:
            raise InvalidRequest(
                "response_format.json_schema.schema is missing; type json_schema needs it.",
                param="response_format.json_schema.schema",
            )
        return Constraint("json_schema", json.dumps(self.json_schema.schema_))


class StructuredOutputs(Body):
    """vLLM's way to ask for structured output: exactly one of the fields."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "structural_tag": (),
        "whitespace_pattern": (),
        "disable_fallback": (False,),
        "disable_any_whitespace": (False,),
        "disable_additional_properties": (False,),
    }

    model_config = ConfigDict(populate_by_name=True)
    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    def to_constraint(self) -> Constraint:
        given = {
            "json_schema": self.json_ if isinstance(self.json_, str | None) else json.dumps(self.json_),
            "regex": self.regex,
            "choice": None if self.choice is None else json.dumps(self.choice),
            "grammar": self.grammar,
            "json_object": "" if self.json_object else None,
        }
        constraints = [Constraint(kind, source) for kind, source in given.items() if source is not None]  # type: ignore[arg-type]
        if len(constraints) != 1:
            raise InvalidRequest(
                "structured_outputs needs exactly one of json, regex, choice, grammar, json_object.",
                param="structured_outputs",
            )
        if self.choice == []:
            raise InvalidRequest("structured_outputs.choice is empty.", param="structured_outputs.choice")
        return constraints[0]


class SpeculativeConfig(Body):
    """vLLM's way to ask for speculative decoding, here per request. 0 tokens: none, whatever the server's default."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"model": ("ngram",), "draft_tensor_parallel_size": (1,)}

    method: Literal["ngram"] = "ngram"
    num_speculative_tokens: Integer = Field(default=8, ge=0, le=64)
    prompt_lookup_min: Integer = Field(default=2, ge=1, le=64)
    prompt_lookup_max: Integer = Field(default=4, ge=1, le=64)

    def to_speculation(self) -> Speculation:
        """Raise `InvalidRequest` where the least length is above the greatest."""
        return Speculation(self.num_speculative_tokens, self.prompt_lookup_min, self.prompt_lookup_max)


class SamplingFields(Body):
    """How tokens are drawn and when the output ends. Null means the default."""

    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: Integer | None = Field(default=None, ge=-1, le=MAX_INT64)
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    logit_bias: (
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None
    ) = None
    seed: Integer | None = Field(default=None, ge=-MAX_INT64 - 1, le=MAX_INT64)
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    min_tokens: Tokens | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = Field(default=None, description=GUIDED.format("json"))
    guided_regex: str | None = Field(default=None, description=GUIDED.format("regex"))
    guided_choice: list[str] | None = Field(default=None, description=GUIDED.format("choice"))
    guided_grammar: str | None = Field(default=None, description=GUIDED.format("grammar"))
    speculative_config: SpeculativeConfig | None = None
    priority: Integer | None = Field(default=None, ge=-(2**31), le=2**31 - 1)

    def to_sampling(self, default: Sampling) -> Sampling:
        """Return the sampling parameters, those of `default` where a field is left out; a seed is folded into 63
        bits.
        """
        return Sampling(
            temperature=_or(self.temperature, default.temperature),
            top_p=_or(self.top_p, default.top_p),
            top_k=max(0, _or(self.top_k, default.top_k)),
            min_p=_or(self.min_p, default.min_p),
            presence_penalty=_or(self.presence_penalty, default.presence_penalty),
            frequency_penalty=_or(self.frequency_penalty, default.frequency_penalty),
            repetition_penalty=_or(self.repetition_penalty, default.repetition_penalty),
            logit_bias={int(token_id): bias for token_id, bias in (self.logit_bias or {}).items()},
            seed=None if self.seed is None else self.seed % SEED_MODULUS,
        )

    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def to_constraint(self) -> Constraint | None:
        """Return what the output must match. Raises `InvalidRequest` when two fields ask for different things."""
        from_format = self.response_format.to_constraint() if self.response_format else None
        others = {"structured_outputs": self.structured_outputs, "guided_*": self._guided()}
        given = {name: outputs for name, outputs in others.items() if outputs is not None}
        if len(given) + (from_format is not None) > 1:
            raise unsupported(next(iter(given)), "set beside another field that says what the output must match")
        return next((outputs.to_constraint() for outputs in given.values()), from_format)

    def constraint_field(self) -> str | None:
        """Return the name of the field that says what the output must match."""
        names = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
        given = next((name for name in names if getattr(self, name) is not None), None)
        has_format = self.response_format is not None and self.response_format.type != "text"
        return given or ("response_format" if has_format else None)

    def _guided(self) -> StructuredOutputs | None:
        """Return what vLLM's older names ask for, under the newer ones."""
        values = {name: getattr(self, f"guided_{name}") for name in ("json", "regex", "choice", "grammar")}
        given = {name: value for name, value in values.items() if value is not None}
        return StructuredOutputs(**given) if given else None

    def includes_stop(self) -> bool:
        """Tell whether the stop string stands in the output. Raises `Unsupported` where the text of a stop token would.

        Such a token has no text of its own here: what it would add depends on the tokens before it.
        """
        if self.include_stop_str_in_output and (self.stop_token_ids or self.skip_special_tokens is False):
            raise unsupported(
                "include_stop_str_in_output", "true beside stop_token_ids, or beside skip_special_tokens false"
            )
        return bool(self.include_stop_str_in_output)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value

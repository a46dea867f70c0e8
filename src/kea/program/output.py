"""How one output is written: its settings as authors give them, checked into `OutputOptions`. Knows no calls.

Defaults: temperature 1, no stop. Without `max_tokens` an output may have `DEFAULT_MAX_TOKENS`, cut to the room that the
model has left; a `max_tokens` that was asked for is never cut unless `clamp` is true.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from kea.errors import InvalidRequest
from kea.program.fields import Fields
from kea.types import Constraint, GenerateOptions, Sampling, Stopping

DEFAULT_MAX_TOKENS = 512


class OutputSettings(TypedDict, total=False):
    """What an author may set on an output; a missing key means the default. At most one of the last five.

    `max_tokens`: most tokens of the output (512, cut to the room that the model has left). `clamp`: whether one that is
    given is cut, too, rather than refused. `min_tokens`: fewest before it may end by itself. `stop`, `stop_token_ids`:
    what ends it, without being part of it. `ignore_eos`: go on where the model would end. `temperature` (1; 0 takes the
    likeliest), `top_p`, `top_k`, `min_p`, the penalties, `logit_bias` by token id, `seed`: how tokens are drawn.
    `json_schema` (a schema, or a pydantic model), `json_object`, `regex`, `choices`, `grammar`: what it must match.
    """

    max_tokens: int
    clamp: bool
    min_tokens: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[Any, float]
    seed: int
    json_schema: Mapping[str, Any] | type
    json_object: bool
    regex: str
    choices: Sequence[str]
    grammar: str


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """A checked output. With `clamp`, `max_tokens` is cut to the room left instead of being refused."""

    options: GenerateOptions
    clamp: bool


def parse_output(settings: object, where: str = "output", *, also: Sequence[str] = ()) -> OutputOptions:
    """Check settings; keys named in `also` are left to the caller. Raises `InvalidRequest`."""
    fields = Fields(settings, where)
    fields.skip(*also)
    constraint = _read_constraint(fields)
    try:
        stopping, sampling = _read_stopping(fields), _read_sampling(fields)
    except InvalidRequest as error:
        raise _located(error, where) from None
    clamp = fields.boolean("clamp", default="max_tokens" not in fields)
    fields.finish()
    return OutputOptions(GenerateOptions(stopping, sampling, constraint), clamp)


def output_settings(output: OutputOptions) -> dict[str, Any]:
    """Return the settings that `parse_output` reads back to an equal value; defaults are left out."""
    options = output.options
    settings = {"max_tokens": options.stopping.max_tokens, "clamp": output.clamp}
    settings |= _changed(options.stopping, Stopping(max_tokens=options.stopping.max_tokens))
    settings |= _changed(options.sampling, Sampling())
    return settings | _constraint_settings(options.constraint)


def _changed(value: Stopping | Sampling, default: Stopping | Sampling) -> dict[str, Any]:
    pairs = ((name, getattr(value, name)) for name in value.__slots__)
    changed = {name: item for name, item in pairs if item != getattr(default, name)}
    return {name: _json_form(item) for name, item in changed.items()}


def _json_form(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    return value


def _read_stopping(fields: Fields) -> Stopping:
    return Stopping(
        max_tokens=fields.integer("max_tokens", DEFAULT_MAX_TOKENS),
        min_tokens=fields.integer("min_tokens", 0),
        stop=fields.texts("stop"),
        stop_token_ids=fields.integers("stop_token_ids"),
        ignore_eos=fields.boolean("ignore_eos", default=False),
    )


def _read_sampling(fields: Fields) -> Sampling:
    return Sampling(
        temperature=fields.number("temperature", 1.0),
        top_p=fields.number("top_p", 1.0),
        top_k=fields.integer("top_k", 0),
        min_p=fields.number("min_p", 0.0),
        presence_penalty=fields.number("presence_penalty", 0.0),
        frequency_penalty=fields.number("frequency_penalty", 0.0),
        repetition_penalty=fields.number("repetition_penalty", 1.0),
        logit_bias=_read_logit_bias(fields),
        seed=None if fields.optional("seed") is None else fields.integer("seed"),
    )


def _read_logit_bias(fields: Fields) -> dict[int, float]:
    value = fields.optional("logit_bias")
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise fields.refusal("logit_bias", value, "an object from token id to bias")
    return {_token_id(fields, key): _bias(fields, bias) for key, bias in value.items()}


def _token_id(fields: Fields, key: object) -> int:
    text = str(key)
    if isinstance(key, bool) or not (text.isascii() and text.isdigit()):
        raise fields.refusal("logit_bias", key, "an object from token id to bias")
    return int(text)


def _bias(fields: Fields, bias: object) -> float:
    if isinstance(bias, bool) or not isinstance(bias, int | float):
        raise fields.refusal("logit_bias", bias, "an object from token id to bias")
    return bias


def _read_constraint(fields: Fields) -> Constraint | None:
    found = [
        constraint
        for constraint in (
            _text_constraint(fields, "regex", "regex"),
            _text_constraint(fields, "grammar", "grammar"),
            _schema_constraint(fields),
            _choice_constraint(fields),
            _object_constraint(fields),
        )
        if constraint is not None
    ]
    if len(found) > 1:
        kinds = " and ".join(constraint.kind for constraint in found)
        raise InvalidRequest(f"{fields.where} asks for {kinds}; at most one constraint is allowed.", param=fields.where)
    return found[0] if found else None


def _text_constraint(fields: Fields, key: str, kind: Literal["regex", "grammar"]) -> Constraint | None:
    source = fields.text(key, "")
    return Constraint(kind, source) if source else None


def _schema_constraint(fields: Fields) -> Constraint | None:
    schema = fields.optional("json_schema")
    if schema is None:
        return None
    if not isinstance(schema, Mapping):
        raise fields.refusal("json_schema", schema, "a JSON schema (an object)")
    return Constraint("json_schema", _dump(fields, "json_schema", schema))


def _choice_constraint(fields: Fields) -> Constraint | None:
    if fields.optional("choices") is None:
        return None
    choices = fields.items("choices")
    if not choices or not all(isinstance(item, str) and item for item in choices):
        raise fields.refusal("choices", choices, "a list of at least one non-empty string")
    return Constraint("choice", json.dumps(list(choices)))


def _object_constraint(fields: Fields) -> Constraint | None:
    return Constraint("json_object", "") if fields.boolean("json_object", default=False) else None


def _dump(fields: Fields, key: str, value: object) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{fields.path(key)} is not JSON: {error}.", param=fields.path(key)) from error


def _constraint_settings(constraint: Constraint | None) -> dict[str, Any]:
    if constraint is None:
        return {}
    if constraint.kind == "json_object":
        return {"json_object": True}
    if constraint.kind == "json_schema":
        return {"json_schema": json.loads(constraint.source)}
    if constraint.kind == "choice":
        return {"choices": json.loads(constraint.source)}
    return {constraint.kind: constraint.source}


def _located(error: InvalidRequest, where: str) -> InvalidRequest:
    if error.param is None or error.param.startswith(where):
        return error
    return type(error)(f"{where}: {error.message}", hint=error.hint, param=f"{where}.{error.param}")

"""Bodies from and to the wire: strict parsing with named fields, known-but-unsupported fields refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from starlette.responses import Response

from kea.errors import InvalidRequest, Unsupported

_ErrorDetails = Mapping[str, Any]  # of `ValidationError.errors()`
MAX_QUOTED_LEN = 80
JSON_TYPE = "application/json"
UNION_MEMBERS = frozenset({"str", "int", "float", "bool", "dict", "nullable"})

INSTEAD: Mapping[str, str] = {
    "allowed_token_ids": "structured_outputs (choice, regex, grammar) says what an output may be.",
    "bad_words": "A logit_bias of -100 keeps a token out; structured_outputs.regex says what an output may be.",
    "best_of": "n gives several outputs; with logprobs the caller can choose among them.",
    "functions": "tools has replaced it.",
    "guided_decoding_backend": "There is one backend, for structured_outputs.",
    "length_penalty": "It belongs to beam search, which is not offered; n gives several outputs.",
    "logits_processors": "logit_bias, the penalties and structured_outputs shape what is drawn.",
    "lora_adapter": "Merge the adapter into its model and serve that.",
    "lora_request": "Merge the adapter into its model and serve that.",
    "return_token_ids": "logprobs tells of each token, /tokenize the ids of a text.",
    "return_tokens_as_token_ids": "logprobs tells of each token, /tokenize the ids of a text.",
    "truncate_prompt_tokens": "Shorten the prompt; /tokenize counts its tokens.",
    "use_beam_search": "n gives several outputs.",
}
"""What to send instead of a field that is refused."""


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_whole)]
"""A whole number, also one that is written 16.0: JSON makes no difference, and some clients know floats only."""


class Body(BaseModel):
    """A request's body. Unknown fields are accepted, as OpenAI-compatible servers do, and named in the answer; a known
    one is never passed over: a field in `refused` raises `Unsupported` unless its value is neutral, as listed there."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="after")
    def _check_refused(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name in self.refused and value is not None and value not in self.refused[name]:
                raise unsupported(name, value, self.refused[name])
        return self

    def unknown_fields(self) -> tuple[str, ...]:
        """Return the names of the fields that mean nothing here; those of an object within as object.field."""
        own = (name for name in self.model_extra or () if name not in self.refused)
        inner = (
            f"{name}.{field}"
            for name in type(self).model_fields
            if isinstance(value := getattr(self, name), Body)
            for field in value.unknown_fields()
        )
        return (*own, *inner)


class Reply(BaseModel):
    """A response's body, made by us: not validated again, written without the fields that were not set."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    def to_json(self) -> bytes:
        return self.__pydantic_serializer__.to_json(self, exclude_unset=True)

    def to_response(self, status: int = 200) -> Response:
        return Response(self.to_json(), status, media_type=JSON_TYPE)


B = TypeVar("B", bound=Body)


def parse_body(model: type[B], raw: bytes) -> B:
    """Parse JSON into `model`. Raises `InvalidRequest` that names the first wrong field, or `Unsupported`."""
    try:
        return model.model_validate_json(raw or b"{}")
    except ValidationError as error:
        raise _explain(error) from None


def json_response(content: dict[str, Any]) -> Response:
    """Build the answer from what another room describes as JSON itself."""
    return Response(json.dumps(content, ensure_ascii=False).encode(errors="replace"), 200, media_type=JSON_TYPE)


def unsupported(name: str, value: object, allowed: Sequence[object] = ()) -> Unsupported:
    """Build the refusal of a field that is known but not offered."""
    hint = f"Leave it out, or send {' or '.join(map(repr, allowed))}." if allowed else "Leave it out."
    if name in INSTEAD:
        hint = f"{hint} {INSTEAD[name]}"
    return Unsupported(f"{name} is {quote(value)}; this server does not support it.", param=name, hint=hint)


def quote(value: object) -> str:
    """Show a value of the caller's in a message, shortened."""
    text = repr(value)
    return text if len(text) <= MAX_QUOTED_LEN else text[:MAX_QUOTED_LEN] + "..."


def _explain(error: ValidationError) -> InvalidRequest:
    found = error.errors(include_url=False, include_context=False)
    told = next((item for item in found if item["loc"][-1:] == ("type",)), found[0])
    first = _nearest(found) if told is found[0] else told
    if first["type"] == "json_invalid":
        return InvalidRequest(f"The body is not valid JSON: {first['msg']}.", param="body")
    if not first["loc"]:
        return InvalidRequest(f"The body is wrong: {first['msg']}.", param="body")
    path = _path_of(first["loc"])
    if first["type"] == "missing":
        return InvalidRequest(f"{path} is required.", param=path)
    alike = [item for item in found if _path_of(item["loc"]) == path and _is_of_type(item) == _is_of_type(first)]
    reasons = dict.fromkeys(item["msg"] for item in alike)
    param = _path_of(told["loc"])  # of several alternatives, what OpenAI's clients call the field
    return InvalidRequest(f"{path} is {quote(first['input'])}: {'; or: '.join(reasons)}.", param=param)


def _nearest(found: Sequence[_ErrorDetails]) -> _ErrorDetails:
    """Return the error of the alternative that the value came nearest to: it had the right type and a wrong value."""
    field = found[0]["loc"][:1]
    if not _is_of_type(found[0]):
        return found[0]
    return next((item for item in found if item["loc"][:1] == field and not _is_of_type(item)), found[0])


def _is_of_type(item: _ErrorDetails) -> bool:
    return str(item["type"]).endswith("_type")


def _path_of(loc: tuple[int | str, ...]) -> str:
    """Return the place of an error without the names of the alternatives that were tried there."""
    kept = [part for part in loc if isinstance(part, int) or _is_key(part)]
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in kept).lstrip(".") or str(loc[0])


def _is_key(part: str) -> bool:
    """Tell keys of the caller's from pydantic's names of types ("str", "list[int]", "NamedToolChoice")."""
    is_name = part.isdigit() or (part.isidentifier() and not part[0].isupper())
    return is_name and part not in UNION_MEMBERS

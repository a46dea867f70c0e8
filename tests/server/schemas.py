"""Hypothesis strategies from JSON schemas (as far as our own documents use them), and ways to spoil what they give."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False, allow_infinity=False, width=32), TEXT
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)
JUNK = st.one_of(
    ANYTHING,
    st.sampled_from([10**30, -(10**30), 1e308, -1, 0, "", "\x00", "x" * 5000, [], {}, [[]], [None], "é\U0001f600"]),
)

MORE_KEYS = ["audio", "best_of", "suffix", "tools", "unknown", "stop", "n"]


def from_schema(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Return a strategy of values that the schema describes."""
    if "$ref" in schema:
        return from_schema(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return st.one_of([from_schema(option, definitions) for option in options])
    kind = schema.get("type")
    if kind == "object":
        return _objects(schema, definitions)
    if kind == "array":
        return st.lists(
            from_schema(schema.get("items", {}), definitions), min_size=schema.get("minItems", 0), max_size=3
        )
    return SIMPLE[kind](schema) if kind in SIMPLE else ANYTHING


def _integers(schema: Mapping[str, Any]) -> st.SearchStrategy[int]:
    low = schema.get("minimum", -100)
    return st.integers(low, min(schema.get("maximum", low + 200), low + 200))


def _numbers(schema: Mapping[str, Any]) -> st.SearchStrategy[float]:
    return st.floats(schema.get("minimum", 0.01), schema.get("maximum", 100), allow_nan=False)


def _strings(schema: Mapping[str, Any]) -> st.SearchStrategy[str]:
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True)
    texts = TEXT.filter(lambda text: len(text) >= schema.get("minLength", 0))
    return st.one_of(texts, st.sampled_from(["fake", "a b"]))


SIMPLE: Mapping[Any, Callable[[Mapping[str, Any]], st.SearchStrategy[Any]]] = {
    "string": _strings,
    "integer": _integers,
    "number": _numbers,
    "boolean": lambda _: st.booleans(),
    "null": lambda _: st.none(),
}


def _objects(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    properties = schema.get("properties", {})
    required = set(schema.get("required", ()))
    fields = {name: from_schema(part, definitions) for name, part in properties.items()}
    if "model" in fields:
        fields["model"] = st.sampled_from(["fake", "fake", "other"])
    extra = schema.get("additionalProperties")
    if not fields and isinstance(extra, Mapping):
        return st.dictionaries(TEXT, from_schema(extra, definitions), max_size=2)
    if not fields:
        return st.dictionaries(TEXT, ANYTHING, max_size=3)
    return st.fixed_dictionaries(
        {name: fields[name] for name in fields if name in required},
        optional={name: fields[name] for name in fields if name not in required},
    )


@st.composite
def spoiled(draw: st.DrawFn, body: st.SearchStrategy[Any]) -> bytes:
    """Draw a body, spoil it in up to three places, write it as JSON; sometimes cut or garble the text."""
    value = copy.deepcopy(draw(body))
    for _ in range(max(0, draw(st.integers(-2, 3)))):
        value = _spoil(draw, value)
    text = json.dumps(value, ensure_ascii=draw(st.booleans())).encode(errors="replace")
    match draw(st.integers(0, 20)):
        case 0:
            return text[: draw(st.integers(0, len(text)))]
        case 1:
            at = draw(st.integers(0, len(text)))
            return text[:at] + draw(st.binary(max_size=5)) + text[at:]
        case 2:
            return text.replace(b"0", b"NaN").replace(b"1", b"1e999")
    return text


def _spoil(draw: st.DrawFn, value: Any) -> Any:
    """Replace, remove or add something at a random place."""
    if draw(st.integers(0, 4)) == 0 or not isinstance(value, dict | list) or not value:
        return copy.deepcopy(draw(JUNK))
    if isinstance(value, list):
        idx = draw(st.integers(0, len(value) - 1))
        value[idx] = _spoil(draw, value[idx])
        return value
    key = draw(st.sampled_from(sorted(value)))
    match draw(st.integers(0, 3)):
        case 0:
            del value[key]
        case 1:
            value[draw(st.sampled_from(["audio", "best_of", "suffix", "tools", "unknown", "stop", "n"]))] = (
                copy.deepcopy(draw(JUNK))
            )
        case _:
            value[key] = _spoil(draw, value[key])
    return value

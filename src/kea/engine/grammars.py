"""Turns a client's constraint into a grammar of the llguidance library. Pure text; owns what of it is refused at sight.

llguidance bounds its own work by fuel, but for one keyword: the automaton of `multipleOf` grows with the number (half a
second at 50,000, unbounded beyond). So the numbers of one grammar may have a least common multiple of at most 10,000.
Blank space between the parts of a JSON value is allowed, but bounded: a weak model could go on with it for ever.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from kea.errors import InvalidRequest
from kea.types import Constraint

MAX_SOURCE_BYTES = 64 * 1024
_MAX_MULTIPLE = 10_000
_EMBEDDED = "%json"
# A space, or a new line and its indentation: what JSON is written with. More, and a weak model writes nothing else.
_BLANK = r"(\x20|\x0A[\x20\x09]{0,16})"


def grammar_text(constraint: Constraint) -> str:
    """Return the constraint as a grammar that llguidance compiles; raise `InvalidRequest` where it is malformed."""
    from llguidance import LLMatcher

    kind, source = constraint.kind, constraint.source
    _check_text(kind, source)
    match kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(_read_schema(source), {"whitespace_pattern": _BLANK})
        case "json_object":
            return LLMatcher.grammar_from_json_schema({"type": "object"}, {"whitespace_pattern": _BLANK})
        case "regex":
            return LLMatcher.grammar_from_regex(source)
        case "choice":
            return LLMatcher.grammar_from_lark(_choice_grammar(source))
        case "grammar":
            for schema in _embedded_schemas(source):
                _check_multiples(schema, kind)
            return LLMatcher.grammar_from_lark(source)


def _check_text(kind: str, source: str) -> None:
    try:
        num_bytes = len(source.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(f"{kind} is not valid Unicode: it holds half a surrogate pair.", param=kind) from None
    if num_bytes > MAX_SOURCE_BYTES:
        raise InvalidRequest(f"{kind} is {num_bytes} bytes long; it may have {MAX_SOURCE_BYTES}.", param=kind)


def _read_schema(source: str) -> dict[str, Any]:
    schema = _read_json("json_schema", source)
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise InvalidRequest(f"json_schema is {type(schema).__name__}; it must be an object.", param="json_schema")
    _check_text("json_schema", json.dumps(schema, ensure_ascii=False))  # an escape may hide half a surrogate pair
    _check_multiples(schema, "json_schema")
    return schema


def _read_json(kind: str, source: str) -> Any:
    try:
        return json.loads(source)
    except RecursionError:
        raise InvalidRequest(f"{kind} is nested too deeply.", param=kind) from None
    except ValueError as error:
        raise InvalidRequest(f"{kind} is not valid JSON: {error}.", param=kind) from error


def _choice_grammar(source: str) -> str:
    choices = _read_json("choice", source)
    if not isinstance(choices, list) or not choices or not all(isinstance(c, str) and c for c in choices):
        raise InvalidRequest("choice must be a list of at least one string, none of them empty.", param="choice")
    texts = (json.dumps(choice).replace("\x7f", "\\u007f") for choice in choices)
    return "start: CHOICE\nCHOICE: " + " | ".join(
        texts
    )  # one lexeme: thousands of choices are no branches of the parser


def _embedded_schemas(grammar: str) -> Iterator[Any]:
    """Yield the JSON schemas written inside a Lark grammar; what does not parse is left to the compiler to refuse."""
    for part in grammar.split(_EMBEDDED)[1:]:
        try:
            yield json.JSONDecoder().raw_decode(part.lstrip())[0]
        except RecursionError:
            raise InvalidRequest("grammar holds a JSON schema that is nested too deeply.", param="grammar") from None
        except ValueError:
            continue


def _check_multiples(schema: Any, kind: str) -> None:
    """Raise `InvalidRequest` where the numbers of `multipleOf` need too large an automaton."""
    multiple = 1
    for value in _multiples(schema):
        multiple = math.lcm(multiple, _coefficient(value))
        if multiple > _MAX_MULTIPLE:
            raise InvalidRequest(
                f"multipleOf {value} makes the grammar too large: the numbers in one schema may have a least common "
                f"multiple of at most {_MAX_MULTIPLE}.",
                param=kind,
            )


def _multiples(schema: Any) -> Iterator[int | float]:
    pending = [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            value = node.get("multipleOf")
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value != 0:
                yield value
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)


def _coefficient(value: float) -> int:
    """Return the number without its decimal point: 12.5 is 125, 0.01 is 1."""
    number = abs(Decimal(repr(value)))
    exponent = number.normalize().as_tuple().exponent
    return int(number.scaleb(max(0, -int(exponent))))

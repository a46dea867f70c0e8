"""The page of the Python API: of every class and function of `kea` its signature, what it does, and its members."""

from __future__ import annotations

import enum
import inspect
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from tools.loading import load_attribute, load_module
from tools.reference.page import Page, SourceWrong, format_table

INTRODUCTION = (
    "How these are used together tells the [guide](../guide.md); all names in a line each are on the page of "
    "[names](names.md), errors on [theirs](errors.md)."
)
RETURNED = (
    ("kea.program.output", "OutputSettings"),
    ("kea.program.status", "SessionStatus"),
    ("kea.program.status", "CallRow"),
    ("kea.program.status", "CallState"),
)
"""Types that stand in public signatures without being exported."""
INTERNAL: Mapping[str, frozenset[str]] = {
    "Connection": frozenset({"loop"}),
    "Output": frozenset({"resolve"}),
    "SemanticFunction": frozenset({"call_at"}),
    "Session": frozenset({"check_owned", "create_id", "loop", "reach", "submit"}),
    "SessionStatus": frozenset({"to_json"}),
    "CallRow": frozenset({"to_json"}),
    "Variable": frozenset({"become_output", "begin_read", "pieces", "read", "write"}),
}
"""What rooms of the package use of each other's objects; it may change."""
MADE_BY = frozenset({"Connection", "SemanticFunction", "Session", "Variable"})
"""Classes that functions of `kea` make: their constructors are internal as well."""
SPECIAL = ("__call__",)


def render_python() -> str:
    """Return a section per function and class of `kea.__all__`, then of the types that those return."""
    package = load_module("kea")
    public = [(f"kea.{name}", getattr(package, name)) for name in sorted(load_attribute("kea", "__all__"))]
    returned = [(f"{module}.{name}", load_attribute(module, name)) for module, name in RETURNED]
    described = [(name, item) for name, item in [*public, *returned] if inspect.isclass(item) or _is_function(item)]
    return "\n\n".join([INTRODUCTION, *(_section(name, item) for name, item in described)])


def _is_function(item: Any) -> bool:
    return callable(item) and not inspect.isclass(item) and not inspect.ismodule(item)


def _section(name: str, item: Any) -> str:
    """Return the section of a function or a class."""
    parts = [f"## `{name}`"]
    if _is_function(item):
        return "\n\n".join([*parts, f"`{_spell(name, item)}`", _docstring(name, item)])
    fields = _fields(item)
    if "__init__" in vars(item) and item.__name__ not in MADE_BY and not issubclass(item, enum.Enum | BaseException):
        parts += [] if fields else [f"`{_spell(name, item.__init__, is_method=True)}`"]
    parts.append(_docstring(name, item))
    if fields:
        parts.append(fields)
    parts += [_member(name, member, value) for member, value in _members(item)]
    return "\n\n".join(parts)


def _fields(cls: Any) -> str:
    """Return the table of what a record, a dictionary of settings or an enumeration holds; nothing for others."""
    if issubclass(cls, enum.Enum):
        return format_table(["Member", "Value"], [[f"`{item.name}`", f"`{item.value!r}`"] for item in cls])
    if typing.is_typeddict(cls) or hasattr(cls, "__dataclass_fields__"):
        fields = cls.__annotations__.items()
        return format_table(["Field", "Type"], [[f"`{field}`", f"`{_annotation(kind)}`"] for field, kind in fields])
    return ""


def _members(cls: Any) -> Iterator[tuple[str, Any]]:
    internal = INTERNAL.get(cls.__name__, frozenset())
    unknown = internal - set(vars(cls))
    if unknown:
        raise SourceWrong(f"tools/reference/python.py hides members that {cls.__name__} has not: {sorted(unknown)}.")
    for name, value in vars(cls).items():
        is_public = not name.startswith("_") or name in SPECIAL
        is_described = inspect.isfunction(value) or isinstance(value, property | classmethod)
        if is_public and is_described and name not in internal:
            yield name, value


def _member(owner: str, name: str, value: Any) -> str:
    where = f"{owner}.{name}"
    if isinstance(value, property):
        return f"**`{name}`** (property)\n{_indented(_docstring(where, value))}"
    function = value.__func__ if isinstance(value, classmethod) else value
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    prefix = "async " if is_async else ""
    return f"**`{prefix}{_spell(name, function, is_method=True)}`**\n{_indented(_docstring(where, function))}"


def _indented(text: str) -> str:
    return textwrap.indent(text, "> ", lambda _: True).replace("> \n", ">\n")


def _spell(name: str, function: Any, *, is_method: bool = False) -> str:
    """Return a call's form, with annotations as they stand in the source."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[is_method:]
    spelled = [item.replace(annotation=_Spelled.of(item.annotation)) for item in parameters]
    returns = _Spelled.of(signature.return_annotation)
    text = str(signature.replace(parameters=spelled, return_annotation=returns))
    return name + (text.removesuffix(" -> None") if function.__name__ == "__init__" else text)


class _Spelled:
    """An annotation that is written as its source."""

    def __init__(self, text: str) -> None:
        self._text = text

    @classmethod
    def of(cls, annotation: Any) -> Any:
        return annotation if annotation is inspect.Signature.empty else cls(_annotation(annotation))

    def __repr__(self) -> str:
        return self._text


def _annotation(annotation: Any) -> str:
    if isinstance(annotation, typing.ForwardRef):
        return annotation.__forward_arg__
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _docstring(where: str, item: Any) -> str:
    text = inspect.getdoc(item)
    if not text:
        raise SourceWrong(f"{where} has no docstring.")
    return text


PAGE = Page("python.md", "Python API", render_python)

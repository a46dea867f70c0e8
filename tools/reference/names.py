"""The page of public names: what `import kea` offers. A name listed here is permanent."""

from __future__ import annotations

import inspect

import kea
from tools.reference.page import Page, SourceMissing, SourceWrong, first_sentence, format_table


def render_names() -> str:
    """Return the table of `kea.__all__`, sorted."""
    names = getattr(kea, "__all__", None)
    if names is None:
        raise SourceMissing("kea has no __all__")
    absent = [name for name in names if not hasattr(kea, name)]
    if absent:
        raise SourceWrong(f"kea.__all__ names what is not there: {', '.join(absent)}.")
    return format_table(["Name", "Kind", "What it is"], [_row(name) for name in sorted(names)])


def _row(name: str) -> list[str]:
    value = getattr(kea, name)
    if inspect.ismodule(value):
        kind = "module"
    elif inspect.isclass(value):
        kind = "error" if issubclass(value, Exception) else "class"
    elif callable(value):
        kind = "function"
    else:
        return [f"`kea.{name}`", "value", f"`{value!r}`" if name != "__version__" else "the version, as text"]
    return [f"`kea.{name}`", kind, first_sentence(inspect.getdoc(value))]


PAGE = Page("names.md", "Public names of `kea`", render_names)

"""The page of public names: what `import kea` offers. A name listed here is permanent."""

from __future__ import annotations

import inspect

from tools.loading import load_attribute, load_module
from tools.reference.page import Page, SourceWrong, first_sentence, format_table


def render_names() -> str:
    """Return the table of `kea.__all__`, sorted."""
    package = load_module("kea")
    names = load_attribute("kea", "__all__")
    absent = [name for name in names if not hasattr(package, name)]
    if absent:
        raise SourceWrong(f"kea.__all__ names what is not there: {', '.join(absent)}.")
    return format_table(["Name", "Kind", "What it is"], [_row(name, getattr(package, name)) for name in sorted(names)])


def _row(name: str, value: object) -> list[str]:
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

"""Imports what a check reads, and turns a failure to do so into a sentence. Knows no particular module."""

from __future__ import annotations

import importlib
from typing import Any


class SourceMissing(Exception):
    """The code that a check or a page reads is not there or does not import; the message says what."""


def load_attribute(module: str, name: str) -> Any:
    """Return an attribute of a module; raise `SourceMissing` where either cannot be had, whatever the reason."""
    loaded = load_module(module)
    if not hasattr(loaded, name):
        raise SourceMissing(f"{module} has no {name}.")
    return getattr(loaded, name)


def load_module(name: str) -> Any:
    """Import a module; raise `SourceMissing` where that fails, whatever the reason."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # an import runs any code: each of its faults is what is to be told
        raise SourceMissing(f"{name} cannot be imported: {type(error).__name__}: {error}") from error

"""The commands. `main` is the entry point of `kea`."""

from __future__ import annotations

from kea.cli.entry import main

__all__ = ["main"]

"""`kea bench` as a group of commands, which are imported when one of them is asked for: a third of the imports of the
whole command line is theirs.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import typer
import typer.main

from kea.bench.help import PlainGroup


class BenchGroup(PlainGroup):
    """The group; `commands` are those of `kea.bench.commands`."""

    _found: MutableMapping[str, Any] | None = None

    @property
    def commands(self) -> MutableMapping[str, Any]:
        if self._found is None:
            from kea.bench.commands import app as commands

            self._found = typer.main.get_group(commands).commands
        return self._found

    @commands.setter
    def commands(self, given: MutableMapping[str, Any]) -> None:
        assert not given, "the commands of kea bench stand in kea.bench.commands"


app = typer.Typer(name="bench", cls=BenchGroup, no_args_is_help=True, add_completion=False)


@app.callback()
def bench() -> None:
    """Measure servers and engines, each with its bound and its peers in the same run."""

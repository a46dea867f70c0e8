"""The sub-commands of `kea bench`. Owns their list only; each command lives in its own module."""

from __future__ import annotations

import typer

from kea.bench.engine.command import engine
from kea.bench.help import PlainCommand, PlainGroup
from kea.bench.serve import serve

app = typer.Typer(name="bench", cls=PlainGroup, no_args_is_help=True, add_completion=False)


@app.callback()
def bench() -> None:
    """Measure servers and engines, each with its bound and its peers in the same run."""


app.command("engine", cls=PlainCommand)(engine)
app.command("serve", cls=PlainCommand)(serve)

"""The sub-commands of `kea bench`. Owns their list only; each command lives in its own module.

The command line imports this when one of them is asked for (`kea.bench.cli`).
"""

from __future__ import annotations

import typer

from kea.bench.engine.command import engine
from kea.bench.help import PlainCommand, PlainGroup
from kea.bench.serve import serve

app = typer.Typer(name="bench", cls=PlainGroup, no_args_is_help=True, add_completion=False)


app.command("engine", cls=PlainCommand)(engine)
app.command("serve", cls=PlainCommand)(serve)

"""The command `kea`: its sub-commands and what they share. Knows no command's work."""

from __future__ import annotations

import logging
import os
from typing import Annotated

import typer

from kea import __version__
from kea.bench.cli import app as bench_app
from kea.bench.help import PlainCommand, PlainGroup
from kea.cli.chat import chat
from kea.cli.complete import complete
from kea.cli.console import out
from kea.cli.demo import demo
from kea.cli.doctor import doctor
from kea.cli.models import models
from kea.cli.run import run
from kea.cli.serve import serve

# Libraries that log what we tell ourselves, or repeat a request five times aloud.
CHATTY = ("huggingface_hub", "transformers", "httpx2", "asyncio")
# Two of them set their level anew when they are imported, also in the process of an engine.
OWN_LEVELS = ("HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY")

app = typer.Typer(
    name="kea", cls=PlainGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
for command in (demo, serve, run, chat, complete, models, doctor):
    app.command(cls=PlainCommand)(command)
app.add_typer(bench_app)


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"kea {__version__}")
        raise typer.Exit


@app.callback()
def kea(
    *,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log what Kea does; with KEA_DEBUG=1 also what others do.")
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Serve LLM applications: programs of prompts, submitted whole.

    Begin with `kea demo`; then `kea serve MODEL` and `kea run FILE.py`.
    Exit status: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted.
    """
    level = logging.INFO if verbose else logging.WARNING
    others = level if os.environ.get("KEA_DEBUG") else logging.WARNING
    chatty = others if verbose else logging.ERROR
    logging.basicConfig(level=others, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kea").setLevel(level)
    for name in CHATTY:
        logging.getLogger(name).setLevel(chatty)
    for variable in OWN_LEVELS:
        os.environ.setdefault(variable, logging.getLevelName(chatty).lower())

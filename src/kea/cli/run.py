"""`kea run`: an application file, on a server or on an engine in this process. Owns the options only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kea.cli import options
from kea.cli.application import load_application
from kea.cli.connecting import Target, create_transport
from kea.cli.groups import grouped
from kea.cli.running import run_application, showing_own_errors


@grouped
def run(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.py", show_default=False, help="The application: it has main(session, ...).")
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGUMENT", show_default=False, help="Further arguments of main, as strings."),
    ] = None,
    *,
    where: options.Where,
    model: options.ModelOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the timeline to this file as JSON.")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show what the application prints and the timeline only.")
    ] = False,
    engine: options.EngineOptions,
) -> None:
    """Run an application, showing its outputs and its timeline.

    FILE.py has a function main(session, ...), which may be async. Its calls run
    to their end, whether or not it reads the results: on the server at --url, or
    else on an engine in this process.

    Examples:

        kea run examples/map_reduce.py
        kea run examples/chat.py --url http://127.0.0.1:8000 --api-key SECRET
        kea run summarise.py --model ./Qwen3-0.6B -- report.txt --brief
    """
    target = Target(model, where, engine)
    with showing_own_errors(file):
        application = load_application(file)
    application.check_arguments(arguments or [])
    transport = create_transport(target)
    status = run_application(application, arguments or [], transport, shows_outputs=not quiet, json_file=json_file)
    raise typer.Exit(status)

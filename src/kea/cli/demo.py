"""`kea demo`: the application that is installed with Kea, on the embedded model. Owns the command only."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from kea.cli.application import load_application
from kea.cli.connecting import Target, create_transport
from kea.cli.console import out
from kea.cli.running import run_application
from kea.errors import InvalidRequest

FOLDER = Path(__file__).resolve().parent / "demo_app"
APPLICATION = "reader.py"
FILES = (APPLICATION, "excerpt.txt")


def demo(
    *,
    copy: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", show_default=False, help="Copy the demo's files to this folder and end."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the timeline to this file as JSON.")
    ] = None,
) -> None:
    """Run a small application on the embedded model.

    It takes seconds and no network. --copy gives you its two files to change.

    Examples:

        kea demo
        kea demo --copy my-first-application
    """
    if copy is not None:
        _copy_to(copy)
        return
    application = load_application(FOLDER / APPLICATION)
    raise typer.Exit(run_application(application, [], create_transport(Target()), json_file=json_file))


def _copy_to(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if (folder / name).exists():
                raise InvalidRequest(f"{folder / name} is there already; nothing is overwritten.", param="copy")
        for name in FILES:
            shutil.copyfile(FOLDER / name, folder / name)
    except OSError as error:
        raise InvalidRequest(f"{folder} cannot be written: {error.strerror or error}.", param="copy") from error
    out.print(f"Run it with: kea run {folder / APPLICATION}", markup=False)

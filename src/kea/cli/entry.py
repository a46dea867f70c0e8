"""The entry point of `kea`: how errors and interrupts end it. Imports the commands inside, where Ctrl-C is clean.

Exit status: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted. An error is a sentence on standard error; its
traceback appears with `KEA_DEBUG=1`.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


def main() -> None:
    """Run the command line and exit with its status."""
    try:
        sys.exit(_run())
    except KeyboardInterrupt:
        _end_interrupted()
    except SystemExit as ending:
        if ending.code == INTERRUPTED:
            _end_interrupted()
        raise


def _run() -> int:
    """Run the command; what typer itself ends (usage, interrupts) comes as `SystemExit`."""
    from kea.cli.app import app
    from kea.cli.running import ApplicationFailed
    from kea.errors import KeaError

    try:
        app()
    except ApplicationFailed:
        return FAILED
    except KeaError as error:
        return _tell(error)
    return 0


def _tell(error: Exception) -> int:
    from kea.cli.console import err
    from kea.errors import InvalidRequest, KeaError

    if os.environ.get("KEA_DEBUG"):
        err.print_exception()
    err.print("[bold red]error:[/]", end=" ")
    err.print(str(error), markup=False)
    cause: BaseException = error
    while isinstance(cause.__cause__, KeaError):
        cause = cause.__cause__
    return WRONG_INPUT if isinstance(cause, InvalidRequest) else FAILED


def _end_interrupted() -> NoReturn:
    """Say so and exit; at once where a thread was left behind, for which an ordinary exit would wait."""
    from kea.cluster.abandoned import is_any_alive

    with suppress(OSError):  # a pipe that nobody reads any more
        sys.stdout.flush()
    sys.stderr.write("Interrupted.\n")
    sys.stderr.flush()
    if is_any_alive():
        os._exit(INTERRUPTED)
    sys.exit(INTERRUPTED)

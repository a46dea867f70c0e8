"""The entry point of `kea`: how errors and interrupts end it. Imports everything inside, where Ctrl-C is clean.

Exit status: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted. An error is a sentence on standard error; its
traceback appears with `KEA_DEBUG=1`. A server's process ends without the end of its interpreter, which takes a second
once a model's libraries are imported; what was registered to run at the end does run.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


def main() -> None:
    """Run the command line and exit with its status."""
    try:
        status, is_server = _run()
        if is_server:
            _leave(status)
        sys.exit(status)
    except KeyboardInterrupt:
        _end_interrupted()
    except SystemExit as ending:
        if ending.code == INTERRUPTED:
            _end_interrupted()
        raise


def _run() -> tuple[int, bool]:
    """Run the command: its status, and whether it was a server. What typer ends (usage, interrupts) is `SystemExit`."""
    from kea.cli.app import app
    from kea.cli.running import ApplicationFailed
    from kea.cli.serving import ServerEnded
    from kea.errors import KeaError

    try:
        app()
    except ApplicationFailed:
        return FAILED, False
    except KeaError as error:
        return _tell(error), False
    except ServerEnded as ending:
        return _tell_end(ending.reason), True
    return 0, False


def _tell_end(reason: BaseException | None) -> int:
    """Tell how a server ended: it was stopped, it was interrupted before it was ready, or an error."""
    from kea.errors import KeaError

    if isinstance(reason, KeaError):
        return _tell(reason)
    sys.stderr.write("Stopped.\n" if reason is None else "Interrupted.\n")
    return 0 if reason is None else INTERRUPTED


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
    abandoned = sys.modules.get("kea.cluster.abandoned")  # an import that was cut may not be begun again
    _flush()
    sys.stderr.write("Interrupted.\n")
    sys.stderr.flush()
    if abandoned is not None and abandoned.is_any_alive():
        os._exit(INTERRUPTED)
    sys.exit(INTERRUPTED)


def _leave(status: int) -> NoReturn:
    """End the process at once, after what was registered for its end (by functions that users gave)."""
    import atexit

    from kea.cluster.abandoned import is_any_alive

    if not is_any_alive():  # which waits for the threads that were left behind
        atexit._run_exitfuncs()
    _flush()
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a pipe that nobody reads any more
            continue

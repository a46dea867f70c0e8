"""One run of an application: its session opened, its outputs shown, its timeline drawn. Knows no options.

Everything that is submitted runs to its end, also what the application itself does not read.
"""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kea.cli.application import Application
from kea.cli.console import check_writable, err, out, write_file
from kea.cli.outputs import OutputView
from kea.cli.timeline import draw_timeline
from kea.cli.watching import WatchedTransport
from kea.client.connection import Connection
from kea.client.session import Session
from kea.client.transport import Transport
from kea.errors import KeaError
from kea.program.status import CallState, SessionStatus

DONE, FAILED = 0, 1


class ApplicationFailed(Exception):
    """The application raised an error of its own; its traceback has been shown."""


def run_application(
    application: Application,
    arguments: Sequence[str],
    transport: Transport,
    *,
    shows_outputs: bool = True,
    json_file: Path | None = None,
) -> int:
    """Run to the end and return the exit status: 1 where a call failed. Raises the application's `KeaError`."""
    application.check_arguments(arguments)
    if json_file is not None:
        check_writable(json_file)
    view = OutputView(out, is_quiet=not shows_outputs)
    watched = WatchedTransport(transport, view)
    with Connection(watched) as connection, connection.session(application.path.stem) as session:
        with view:
            _call_main(application, session, arguments)
            session.status()  # waits until everything is submitted
            connection.loop.run(watched.settle())
        status = session.status()
    out.print()
    out.print(draw_timeline(status, out), soft_wrap=False)
    if json_file is not None:
        write_file(json_file, json.dumps(status.to_json(), indent=2) + "\n")
    return _exit_status(status)


def _call_main(application: Application, session: Session, arguments: Sequence[str]) -> None:
    with showing_own_errors(application.path):
        result = application.main(session, *arguments)
        if application.is_async:
            asyncio.run(result)


@contextmanager
def showing_own_errors(path: Path) -> Iterator[None]:
    """Show the traceback of what a user's file raises, and raise `ApplicationFailed` instead; ours pass."""
    try:
        yield
    except KeaError:
        raise
    except Exception as error:
        _show_traceback(error, path.resolve())
        raise ApplicationFailed from error


def _show_traceback(error: Exception, path: Path) -> None:
    """Write the traceback to standard error, from the file at `path` on."""
    trace = error.__traceback__
    while trace is not None and Path(trace.tb_frame.f_code.co_filename).resolve() != path:
        trace = trace.tb_next
    err.file.write("".join(traceback.format_exception(type(error), error, trace)))
    err.file.flush()


def _exit_status(status: SessionStatus) -> int:
    return FAILED if any(row.state is CallState.FAILED for row in status.calls) else DONE

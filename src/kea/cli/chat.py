"""`kea chat`: a conversation in the terminal. Owns the loop of turns; knows no engine.

Each turn is one call whose messages are the conversation so far; what the turns have in common is found in the engine's
memory. Ctrl-C stops an answer; at the prompt it ends the conversation.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from kea.cli import options
from kea.cli.connecting import Target, create_transport, name_model
from kea.cli.console import err, out, write_text
from kea.cli.groups import grouped
from kea.client.connection import Connection
from kea.client.session import Session
from kea.errors import ContextLengthExceeded, KeaError, Unreachable, Unsupported
from kea.program.call import CallSpec, InputParameter, OutputParameter
from kea.program.output import OutputOptions, parse_output
from kea.program.template import Message

ANSWER = "answer"
QUOTES = '"""'
EMBEDDED_NOTE = (
    "The embedded model is a test instrument: it answers questions about passages that it is given, "
    "and cannot converse. kea chat MODEL talks to another one."
)
COMMANDS = {
    "/reset": "forget the conversation, keep the system message",
    "/system TEXT": "begin again with this system message (no TEXT: without one)",
    "/help": "show these commands",
    "/exit": "end; Ctrl-D does the same",
}


@grouped
def chat(
    model: options.Model = None,
    *,
    where: options.Where,
    system: Annotated[str | None, typer.Option(help="The system message.", metavar="TEXT", show_default=False)] = None,
    sampling: options.SamplingOptions,
    engine: options.EngineOptions,
) -> None:
    """Talk to a chat model in the terminal.

    /reset, /system TEXT, /help and /exit are commands. A line that ends in a
    backslash goes on in the next; three quotes begin and end several lines.
    Ctrl-C stops an answer; at the prompt it ends the conversation.

    Examples:

        kea chat ./Qwen3-0.6B
        kea chat --url http://127.0.0.1:8000 --system "Answer in one sentence."
    """
    target = Target(model, where, engine)
    settings = sampling.to_settings(is_embedded=target.is_embedded)
    conversation = Conversation(parse_output(settings), system)
    if target.is_embedded:
        err.print(f"[dim]{EMBEDDED_NOTE}[/]")
    transport = create_transport(target)
    with Connection(transport) as connection, connection.session("chat") as session:
        name = connection.loop.run(name_model(target, transport))
        err.print(f"You talk to {name}.", style="dim", markup=False)
        _talk(session, conversation)


class Conversation:
    """The messages so far, as (role, text). A turn is added once it is whole."""

    def __init__(self, output: OutputOptions, system: str | None = None) -> None:
        self._output = output
        self._system = system
        self.turns: list[tuple[str, str]] = []

    def reset(self) -> None:
        self.turns.clear()

    def begin_with(self, system: str | None) -> None:
        """Forget the conversation and take another system message."""
        self._system = system or None
        self.reset()

    def ask(self, session: Session, question: str) -> str:
        """Print the answer as it is written and return it. A turn that fails or is interrupted is not remembered."""
        call = self._call(session, question)
        (variable,) = session.submit(call)
        pieces = []
        try:
            for piece in variable.stream():
                write_text(piece)
                pieces.append(piece)
        except KeyboardInterrupt:
            variable.cancel()
            raise
        finally:
            write_text("\n")
        answer = "".join(pieces)
        self.turns += [("user", question), ("assistant", answer)]
        return answer

    def _call(self, session: Session, question: str) -> CallSpec:
        """The conversation as one call: texts are inputs, so that nothing in them is read as a placeholder."""
        system = [("system", self._system)] if self._system else []
        texts: Sequence[tuple[str, str]] = [*system, *self.turns, ("user", question)]
        messages = [Message(role, f"{{{{text_{idx}}}}}") for idx, (role, _) in enumerate(texts)]
        return CallSpec(
            id=session.create_id(),
            name="chat",
            inputs=tuple(InputParameter(f"text_{idx}", (text,)) for idx, (_, text) in enumerate(texts)),
            outputs=(OutputParameter(ANSWER, session.create_id(), self._output),),
            messages=(*messages, Message("assistant", f"{{{{{ANSWER}}}}}")),
        )


def _talk(session: Session, conversation: Conversation) -> None:
    """Read lines until the end of input or /exit."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 - gives the prompt its history and editing

        err.print('[dim]A line that ends in \\ goes on; """ begins and ends several. /help; Ctrl-D ends.[/]')
    while (line := _read_line()) is not None:
        if line.startswith("/"):
            if not _obey(line, conversation):
                return
        elif line:
            _answer(session, conversation, line)


def _read_line() -> str | None:
    """Return what was typed up to the end of a line, or of several: one that ends in a backslash goes on in the next,
    and one that begins with three quotes up to three quotes more. None at the end of input.
    """
    line = _read("> ")
    if line is None or not line.startswith(QUOTES):
        return None if line is None else _joined(line)
    lines, line = [], line.removeprefix(QUOTES)
    while line is not None and not line.rstrip().endswith(QUOTES):
        lines.append(line)
        line = _read(". ")
    lines.append("" if line is None else line.rstrip().removesuffix(QUOTES))
    return "\n".join(lines).strip("\n")


def _joined(line: str) -> str:
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1].removesuffix("\\")
        lines.append(_read(". ") or "")
    return "\n".join(lines).strip()


def _read(prompt: str) -> str | None:
    try:
        return input(prompt if sys.stdin.isatty() else "").rstrip("\r")
    except EOFError:
        return None


def _obey(line: str, conversation: Conversation) -> bool:
    """Do what a command says; return whether the conversation goes on."""
    command, _, rest = line.partition(" ")
    if command == "/exit":
        return False
    if command == "/reset":
        conversation.reset()
        err.print("[dim]The conversation is forgotten.[/]")
    elif command == "/system":
        conversation.begin_with(rest.strip())
        err.print("[dim]The conversation begins again.[/]")
    else:
        if command != "/help":
            err.print(f"There is no command {command}.", markup=False)
        for name, meaning in COMMANDS.items():
            err.print(f"  {name:13} {meaning}", markup=False)
        err.print(
            f"  {'line + Enter':13} a backslash before Enter, or {QUOTES} around lines: a message of several lines"
        )
    return True


def _answer(session: Session, conversation: Conversation, question: str) -> None:
    """Ask, and tell in a sentence what prevented an answer; what would prevent every answer is raised."""
    try:
        conversation.ask(session, question)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        err.print("[dim]The answer was stopped and is not remembered.[/]")
    except (Unreachable, Unsupported):
        raise
    except KeaError as error:
        cause = error.__cause__ if isinstance(error.__cause__, KeaError) else error
        if isinstance(cause, Unsupported):
            raise cause from None
        hint = " /reset makes room." if isinstance(cause, ContextLengthExceeded) else ""
        err.print(f"error: {cause}{hint}", style="red", markup=False)
    out.print()

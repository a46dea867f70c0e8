"""`kea complete`: one prompt, its completion. Owns the command; knows no engine."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import closing
from typing import Annotated, Any

import typer

from kea.cli import options
from kea.cli.connecting import Target, create_transport
from kea.cli.console import write_text
from kea.cli.groups import grouped
from kea.client.annotations import Input, Output
from kea.client.connection import Connection
from kea.client.function import function
from kea.errors import InvalidRequest
from kea.program.output import OutputSettings


@grouped
def complete(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", show_default=False, help="The text to continue; - reads it from stdin.")
    ],
    model: options.Model = None,
    *,
    where: options.Where,
    sampling: options.SamplingOptions,
    engine: options.EngineOptions,
) -> None:
    """Continue a text, printing it as it is written.

    The model gets the text as it is, without a chat template.

    Examples:

        kea complete "Once upon a time" --max-tokens 60
        kea complete - ./Qwen3-0.6B --temperature 0 < prompt.txt
        kea complete "The kea is" --url http://127.0.0.1:8000
    """
    text = _read_prompt(prompt)
    target = Target(model, where, engine)
    settings = sampling.to_settings(is_embedded=target.is_embedded)
    completion = _completion(settings)
    with (
        Connection(create_transport(target)) as connection,
        connection.session("complete"),
        closing(completion(text).stream()) as pieces,  # before the session ends, also where the reader went away
    ):
        _write(pieces)


def _write(pieces: Iterable[str]) -> None:
    """Write a text as it comes, and end its line, also where it breaks off."""
    has_begun = False
    try:
        for piece in pieces:
            has_begun = True
            write_text(piece)
    except BaseException:
        if has_begun:
            write_text("\n")
        raise
    write_text("\n")


def _read_prompt(prompt: str) -> str:
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        raise InvalidRequest("The prompt is empty; at least one character is needed.", param="PROMPT")
    return text


def _completion(settings: OutputSettings) -> Any:
    @function(**settings)
    def complete(prompt: Input, completion: Output) -> None:
        """{{prompt}}{{completion}}"""

    return complete

"""Waiting for variables: a value, or its pieces as they come. Knows no calls and no sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack
from functools import partial

from kea.errors import DeadlineExceeded, check_range
from kea.program.variable import SemanticVariable


async def read_value(variable: SemanticVariable, deadline_s: float | None = None) -> str:
    """Return the value once the variable is ready. Raises its error, or `DeadlineExceeded` (the variable goes on)."""
    if not variable.is_done:
        await _wait_done(variable, deadline_s)
    return variable.value


async def read_pieces(variable: SemanticVariable) -> AsyncGenerator[str]:
    """Yield the text from the beginning, in pieces, until the variable is ready. Raises its error behind the pieces."""
    idx = 0
    with _Changes(variable) as changes:
        while True:
            pieces = variable.read_from(idx)
            idx += len(pieces)
            if pieces:
                yield "".join(pieces)
            elif variable.is_done:
                break
            else:
                await changes.next()
    _ = variable.value  # raises the error of a variable that failed


async def read_each(variables: Sequence[SemanticVariable]) -> AsyncGenerator[SemanticVariable]:
    """Yield each variable once it is done, in the order in which they end."""
    done: asyncio.Queue[SemanticVariable] = asyncio.Queue()
    with ExitStack() as stack:
        for variable in variables:
            if variable.is_done:
                done.put_nowait(variable)
            else:
                watcher = partial(_put_if_done, variable, done)
                variable.watch(watcher)
                stack.callback(variable.unwatch, watcher)
        for _ in variables:
            yield await done.get()


def _put_if_done(variable: SemanticVariable, done: asyncio.Queue[SemanticVariable]) -> None:
    if variable.is_done:  # its last change: it is told once
        done.put_nowait(variable)


async def _wait_done(variable: SemanticVariable, deadline_s: float | None) -> None:
    if deadline_s is not None:
        check_range("deadline_s", deadline_s, 0.0)
    try:
        async with asyncio.timeout(deadline_s):
            with _Changes(variable) as changes:
                while not variable.is_done:
                    await changes.next()
    except TimeoutError:
        raise DeadlineExceeded(
            f"variable {variable.name or variable.id!r} was {variable.state.value} when its deadline of "
            f"{deadline_s:g} s passed.",
            hint="The call goes on: read again, or cancel it.",
            param="deadline_s",
        ) from None


class _Changes:
    """Waits for the next change of a variable."""

    def __init__(self, variable: SemanticVariable) -> None:
        self._variable = variable
        self._event = asyncio.Event()

    def __enter__(self) -> _Changes:
        self._variable.watch(self._event.set)
        return self

    def __exit__(self, *exc: object) -> None:
        self._variable.unwatch(self._event.set)

    async def next(self) -> None:
        await self._event.wait()
        self._event.clear()

"""Who opens what, and what closes it: sessions, connections, streams that nobody ended."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

import pytest

import kea
from kea.client.connection import Connection
from kea.errors import Cancelled, DeadlineExceeded, InvalidRequest, Unreachable
from kea.program.call import Program
from kea.program.status import SessionStatus
from kea.service import Service
from kea.types import Criteria
from tests.client.worlds import WORLDS, World, create_engine


@kea.function
def echo(text: kea.Input, answer: kea.Output) -> Any:
    """{{text}}{{answer}}"""


class SilentChannel:
    """A service that took everything and fell silent; it is not there any more when the session closes."""

    async def submit(self, program: Program) -> None:
        return

    async def set(self, variable_id: str, value: str) -> None:
        return

    async def get(self, variable_id: str, criteria: Criteria | None, deadline_s: float | None) -> str:
        await asyncio.sleep(3600)
        return ""

    async def stream(self, variable_id: str, criteria: Criteria | None) -> AsyncGenerator[str]:
        yield ""

    async def cancel(self, call_ids: Sequence[str] | None) -> list[str]:
        return []

    async def status(self) -> SessionStatus:
        raise Unreachable("gone")

    async def close(self) -> None:
        raise Unreachable("gone")


class SilentTransport:
    linger_s = 0.0

    async def open(self) -> None:
        return

    async def open_session(self, name: str) -> SilentChannel:
        return SilentChannel()

    async def close(self) -> None:
        return


@pytest.fixture(params=sorted(WORLDS))
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with WORLDS[request.param]() as world:
        yield world


def test_a_stream_that_an_error_leaves_open_ends_with_its_session(world: World) -> None:
    with pytest.raises(ValueError, match="of the author") as kept, world.session() as session:  # noqa: PT012
        stream = echo("a text of several pieces").stream()
        for _ in stream:
            raise ValueError("of the author")
    assert kept.value.__traceback__ is not None, "which holds the stream"
    assert not session.streams
    with pytest.raises(Cancelled, match="session was closed"):
        next(stream)


def test_a_stream_may_be_collected_on_the_loops_own_thread(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: faults.append(found.exc_value))
    with world.session() as session:
        held = [echo("a text of several pieces").stream()]
        next(held[0])
        world.connection.loop.call_soon(held.clear)
        world.connection.loop.run(_collect())
        assert session.status().num_pending == 0
        assert not session.streams
    assert not faults


async def _collect() -> None:
    gc.collect()


def test_a_session_is_opened_once_and_closed_as_often_as_one_likes() -> None:
    session = kea.connect(service=_service)
    with session:
        with pytest.raises(InvalidRequest, match="session is open already"):
            session.open()
        with pytest.raises(InvalidRequest, match="connection is open already"):
            session.connection.open()
        assert echo("x").get() == "X"
        session.close()
        session.close()
    session.connection.close()
    with session:
        assert echo("again").get() == "AGAIN"


def _service() -> Any:
    engine = create_engine()
    return Service([engine], engine.tokenizer)


def test_an_error_of_the_author_is_not_hidden_by_one_of_closing() -> None:
    with pytest.raises(ValueError, match="mine"), Connection(SilentTransport()) as connection, connection.session():
        raise ValueError("mine")
    with pytest.raises(Unreachable), Connection(SilentTransport()) as connection, connection.session():
        pass


async def test_nor_when_awaited() -> None:
    with pytest.raises(ValueError, match="mine"):
        async with Connection(SilentTransport()) as connection, connection.session():
            raise ValueError("mine")


def test_a_deadline_passes_also_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kea.client.variable.ANSWER_S", 0.05)
    session = kea.Session(Connection(SilentTransport()), "", owns_connection=True)
    with pytest.raises(DeadlineExceeded, match="gave no answer"), session:
        session.variable().get(deadline_s=0.01)


def test_criteria_are_alike(world: World) -> None:
    with world.session() as session:
        variable = session.variable("x")
        with pytest.raises(InvalidRequest, match=r"criteria is 'latency'; it must be one of kea\.LATENCY"):
            variable.get("latency")  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="criteria is"):
            next(variable.stream("latency"))  # type: ignore[arg-type]


def test_a_reader_that_comes_behind_the_end_of_its_session_is_told_so(world: World) -> None:
    with world.session() as session:
        variable = session.variable("x")
        channel = world.connection.loop.run(session.reach(variable._batch, variable.id))
        other = session.variable()
        session.status()
    with pytest.raises(Cancelled, match="session was closed"):
        world.connection.loop.run(channel.get(other.id, None, None))


def test_deadlines_are_alike(world: World) -> None:
    with world.session() as session:
        for value in (-1.0, float("nan")):
            with pytest.raises(InvalidRequest, match="deadline_s is"):
                session.variable("x").get(deadline_s=value)
        assert session.variable("x").get(deadline_s=float("inf")) == "x"

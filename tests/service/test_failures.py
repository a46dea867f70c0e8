from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kea.errors import (
    CallFailed,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    EngineFault,
    InvalidRequest,
    KeaError,
    NotFound,
    ServiceClosing,
    TemplateError,
)
from tests.fakes.engine import FakeEngine, scripted
from tests.fakes.tokenizer import FakeTokenizer
from tests.service.programs import call, collect, fails, native, program, service, settle, shout, states


async def test_a_stream_raises_behind_what_was_written() -> None:
    engine = FakeEngine(scripted("abcdefgh"))
    async with service(engine) as some:
        session = some.create_session()
        engine.fail_next(EngineFault("broken"), after_tokens=4)
        some.submit(session, program(call("c", "p{{y}}", y={})))
        pieces: list[str] = []
        with pytest.raises(CallFailed):
            await collect(some.stream(session, "y"), pieces)
        assert pieces == ["abcd"]


async def test_an_error_reaches_every_dependent_variable_with_its_first_cause() -> None:
    engine = FakeEngine(shout)
    async with service(engine) as some:
        session = some.create_session()
        engine.fail_next(EngineFault("out of order"))
        chain = [call(f"c{idx}", f"{{{{v{idx}}}}} {{{{v{idx + 1}}}}}", **{f"v{idx + 1}": {}}) for idx in range(5000)]
        some.submit(session, program(*chain, call("free", "free{{other}}", other={}), v0="x"))
        first, last = await fails(some, session, "v1"), await fails(some, session, "v5000")
        assert isinstance(first, CallFailed)
        assert isinstance(last, CallFailed)
        assert isinstance(first.__cause__, EngineFault)
        assert last.__cause__ is first.__cause__
        assert "'c4999' did not run: its input 'v4999' failed in call 'c0': out of order" in str(last)
        assert await some.get(session, "other") == "FREE"
        assert states(some, session)["c4999"] == "failed"
        await settle(some)


async def test_a_call_that_reads_a_failed_variable_fails_at_once() -> None:
    engine = FakeEngine()
    async with service(engine) as some:
        session = some.create_session()
        engine.fail_next(EngineFault("no"))
        some.submit(session, program(call("a", "a{{x}}", x={})))
        await fails(some, session, "x")
        some.submit(session, program(call("c", "{{y}} {{z}}", z={}), call("b", "{{x}} {{y}}", y={})))
        assert session.variables["z"].is_done
        assert isinstance((await fails(some, session, "z")).__cause__, EngineFault)
        await settle(some)


async def test_cancelling_a_call_fails_what_depends_on_it() -> None:
    engine = FakeEngine()
    async with service(engine) as some:
        session = some.create_session()
        engine.hold()
        some.submit(
            session, program(call("a", "a{{x}}", x={}), call("b", "{{x}} {{y}}", y={}), call("d", "d{{z}}", z={}))
        )
        await settle(some)
        assert states(some, session) == {"a": "running", "b": "blocked", "d": "running"}
        assert some.cancel(session, ["a"]) == ["a"]
        assert isinstance(await fails(some, session, "x"), Cancelled)
        assert isinstance((await fails(some, session, "y")).__cause__, Cancelled)
        await settle(some)
        assert len(engine.contexts) == 1
        engine.release()
        assert await some.get(session, "z") == "d"
        assert some.cancel(session, ["a", "b", "d"]) == []
        with pytest.raises(NotFound, match="no call 'nope'"):
            some.cancel(session, ["nope"])


async def test_cancelling_everything_cancels_everything() -> None:
    engine = FakeEngine()
    async with service(engine, config={"calls_per_engine": 1}) as some:
        session = some.create_session()
        engine.hold()
        some.submit(
            session, program(call("a", "a{{x}}", x={}), call("b", "{{x}} {{y}}", y={}), call("d", "d{{z}}", z={}))
        )
        await settle(some)
        assert states(some, session) == {"a": "running", "b": "blocked", "d": "queued"}
        assert some.cancel(session) == ["a", "b", "d"]
        assert set(states(some, session).values()) == {"cancelled"}
        await settle(some)
        assert not engine.contexts
        engine.release()
        some.submit(session, program(call("e", "e{{w}}", w={})))
        assert await some.get(session, "w") == "e"


async def test_closing_a_session_fails_its_readers_at_once() -> None:
    engine = FakeEngine()
    async with service(engine) as some:
        session = some.create_session()
        engine.hold()
        some.submit(session, program(call("a", "a{{x}}", x={}), call("b", "{{x}} {{y}}", y={}), free=None))
        readers = [asyncio.create_task(some.get(session, name)) for name in ("x", "y", "free")]
        stream = asyncio.create_task(collect(some.stream(session, "x"), []))
        await settle(some)
        some.close_session(session)
        for reader in (*readers, stream):
            with pytest.raises(Cancelled, match="session was closed"):
                await asyncio.wait_for(reader, 5)
        await settle(some)
        assert not engine.contexts
        with pytest.raises(NotFound):
            some.session(session.identity.id)
        with pytest.raises(NotFound, match="session was closed"):
            some.submit(session, program())
        some.close_session(session)


async def test_closing_the_service_answers_everyone() -> None:
    engine = FakeEngine()
    some = service(engine)
    async with some:
        session = some.create_session()
        engine.hold()
        some.submit(session, program(call("a", "a{{x}}", x={})))
        reader = asyncio.create_task(some.get(session, "x"))
        await settle(some)
    with pytest.raises(ServiceClosing):
        await reader
    assert not engine.contexts
    with pytest.raises(ServiceClosing):
        some.create_session()


async def test_a_deadline_ends_the_reader_and_not_the_call() -> None:
    engine = FakeEngine()
    async with service(engine) as some:
        session = some.create_session()
        engine.hold()
        some.submit(session, program(call("a", "a{{x}}", x={})))
        for deadline_s in (0.0, 0.01):
            with pytest.raises(DeadlineExceeded, match="deadline of"):
                await some.get(session, "x", deadline_s=deadline_s)
        with pytest.raises(InvalidRequest, match="deadline_s is -1"):
            await some.get(session, "x", deadline_s=-1)
        engine.release()
        assert await some.get(session, "x", deadline_s=5) == "a"


async def test_a_variable_is_set_once_and_only_by_who_may() -> None:
    engine = FakeEngine()
    async with service(engine) as some:
        session = some.create_session()
        engine.hold()
        some.submit(session, program(call("a", "a{{x}}", x={}), free=None))
        with pytest.raises(Conflict, match="written by call 'a'"):
            some.set(session, "x", "mine")
        with pytest.raises(InvalidRequest, match="lone surrogate"):
            some.set(session, "free", "\ud800")
        some.set(session, "free", "once")
        with pytest.raises(Conflict, match="can be set once"):
            some.set(session, "free", "twice")
        with pytest.raises(NotFound, match="no variable 'nope'"):
            some.set(session, "nope", "")
        with pytest.raises(NotFound, match="no variable 'nope'"):
            await some.get(session, "nope")
        with pytest.raises(Conflict, match="which is set already"):
            some.submit(session, program(call("b", "b{{free}}", free={})))
        with pytest.raises(Conflict, match="which is set already"):
            some.submit(session, program(call("b", "b{{y}}", y={}), y="preset"))
        assert await some.get(session, "free") == "once"
        engine.release()


@pytest.mark.parametrize(
    ("calls", "error"),
    [
        ([call("a", "{{x}} {{y}}", y={}), call("b", "{{y}} {{x}}", x={})], TemplateError),
        ([call("a", "{{nope}} {{y}}", y={})], TemplateError),
        ([call("a", "p{{y}}", y={}), call("a", "p{{z}}", z={})], Conflict),
        ([call("a", "p{{y}}", y={}), call("b", "p{{y}}", y={})], Conflict),
        ([call("a", "p{{y}}", y={}), native("n", "nope", {}, "z")], NotFound),
    ],
)
async def test_a_refused_program_leaves_nothing_behind(calls: list[Any], error: type[KeaError]) -> None:
    engine = FakeEngine()
    async with service(engine) as some:
        session = some.create_session()
        with pytest.raises(error):
            some.submit(session, program(*calls, extra="x"))
        assert not session.variables
        assert not session.records
        await settle(some)
        assert not engine.record.specs
        some.submit(session, program(call("a", "{{extra}}{{y}}", y={}), extra="x"))
        assert await some.get(session, "y") == "x"


async def test_our_own_fault_ends_the_call_and_not_the_service() -> None:
    class Broken(FakeTokenizer):
        def encode(self, text: str, **options: Any) -> list[int]:
            return [1 // 0] if "boom" in text else super().encode(text, **options)

    async with service(FakeEngine(tokenizer=Broken())) as some:
        session = some.create_session()
        some.submit(session, program(call("a", "boom{{x}}", x={}), call("b", "fine{{y}}", y={})))
        cause = (await fails(some, session, "x")).__cause__
        assert isinstance(cause, EngineFault)
        assert "ZeroDivisionError" in str(cause)
        assert await some.get(session, "y") == "fine"
        await settle(some)

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import Any

import pytest

from kea.errors import CallFailed, Cancelled, DeadlineExceeded, InvalidRequest, LimitExceeded, NotFound
from kea.program.call import AnyCall, VariableRef
from tests.fakes.engine import FakeEngine
from tests.service.programs import call, fails, native, program, service, settle

REF = VariableRef


def join(text: str, times: int, extra: Any = None) -> str:
    return text * times + str(extra or "")


def split(text: str) -> dict[str, str]:
    return {"head": text[:1], "tail": text[1:]}


def broken(kind: str) -> Any:
    if kind == "raise":
        raise ValueError("bad thing")
    if kind == "exit":
        sys.exit(3)
    if kind == "stop":
        raise StopIteration
    if kind == "refuse":
        raise InvalidRequest("not like this")
    return {"number": 3, "wrong names": {"a": "b"}, "wrong values": {"out": 3}, "surrogate": {"out": "\ud800"}}[kind]


FUNCTIONS = {"join": join, "split": split, "broken": broken}


async def test_a_registered_function_reads_and_writes_variables() -> None:
    engine = FakeEngine()
    async with service(engine, functions=FUNCTIONS) as some:
        session = some.create_session()
        calls: list[AnyCall] = [
            call("c", "{{x}}{{y}}", y={}),
            native("n", "join", {"text": REF("y"), "times": 2, "extra": {"a": [1]}}, "z"),
            native("m", "split", {"text": REF("z")}, "head", "tail"),
            call("d", "{{tail}}{{w}}", w={}),
        ]
        some.submit(session, program(*calls, x="ab"))
        assert await some.get(session, "z") == "abab{'a': [1]}"
        assert await some.get(session, "head") == "a"
        assert await some.get(session, "w") == "bab{'a': [1]}"
        await settle(some)
        assert {row.state.value for row in some.status(session).calls} == {"done"}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raise", "raised ValueError: bad thing"),
        ("exit", "raised SystemExit: 3"),
        ("stop", "raised StopIteration"),
        ("refuse", "not like this"),
        ("number", "returned int; it must return a string"),
        ("wrong names", "returned dict"),
        ("wrong values", "for each of: out"),
        ("surrogate", "lone surrogate"),
    ],
)
async def test_a_function_that_fails_fails_its_call_alone(kind: str, message: str) -> None:
    async with service(FakeEngine(), functions=FUNCTIONS) as some:
        session = some.create_session()
        some.submit(session, program(native("n", "broken", {"kind": kind}, "out"), call("c", "{{out}}{{y}}", y={})))
        error = await fails(some, session, "y")
        assert isinstance(error, CallFailed)
        assert message in str(error.__cause__)
        await settle(some)


async def test_wrong_arguments_are_the_calls_fault() -> None:
    async with service(FakeEngine(), functions=FUNCTIONS) as some:
        session = some.create_session()
        some.submit(session, program(native("n", "join", {"nope": 1}, "out")))
        assert "TypeError" in str(await fails(some, session, "out"))


async def test_an_unknown_function_is_refused_at_submit() -> None:
    async with service(FakeEngine(), functions=FUNCTIONS) as some:
        session = some.create_session()
        with pytest.raises(NotFound, match=r"'os\.system' here; registered are: broken, join, split"):
            some.submit(session, program(native("n", "os.system", {}, "out")))


async def test_a_slow_function_times_out_and_blocks_nobody() -> None:
    release = threading.Event()

    def slow() -> str:
        release.wait(20)
        return "late"

    config = {"native_timeout_s": 0.05}
    async with service(FakeEngine(), functions={"slow": slow}, config=config) as some:
        session = some.create_session()
        started = time.perf_counter()
        some.submit(
            session,
            program(native("n", "slow", {}, "out"), native("m", "slow", {}, "other"), call("c", "p{{y}}", y={})),
        )
        assert await some.get(session, "y") == "p"
        some.cancel(session, ["m"])
        assert isinstance(await fails(some, session, "other"), Cancelled)
        assert isinstance((await fails(some, session, "out")).__cause__, DeadlineExceeded)
        assert time.perf_counter() - started < 10
        release.set()
        await settle(some)


def nap() -> str:
    time.sleep(0.12)
    return "done"


async def test_the_time_of_a_function_begins_when_it_does() -> None:
    config = {"native_timeout_s": 0.5, "native_threads": 1}
    async with service(FakeEngine(), functions={"nap": nap}, config=config) as some:
        session = some.create_session()
        some.submit(session, program(*(native(f"n{idx}", "nap", {}, f"v{idx}") for idx in range(8))))
        assert [await some.get(session, f"v{idx}") for idx in range(8)] == ["done"] * 8


async def test_too_many_functions_that_never_return_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kea.service.native.MAX_LEFT_ALONE", 3)
    release = threading.Event()
    config = {"native_timeout_s": 0.01, "native_threads": 2}
    functions = {"slow": lambda: str(release.wait(20)), "quick": lambda: "quick"}
    async with service(FakeEngine(), functions=functions, config=config) as some:
        session = some.create_session()
        some.submit(session, program(*(native(f"n{idx}", "slow", {}, f"v{idx}") for idx in range(6))))
        causes = [(await fails(some, session, f"v{idx}")).__cause__ for idx in range(6)]
        kinds = [type(cause) for cause in causes]  # the fourth begins before or after the third was left alone
        assert [*kinds[:3], *kinds[4:]] == [DeadlineExceeded] * 3 + [LimitExceeded] * 2
        release.set()
        await asyncio.sleep(0.1)
        some.submit(session, program(native("m", "quick", {}, "quick")))
        assert await some.get(session, "quick") == "quick"
        await settle(some)


async def test_functions_that_never_return_leave_their_places_to_others() -> None:
    release = threading.Event()

    def slow() -> str:
        release.wait(20)
        return "late"

    config = {"native_timeout_s": 0.05, "native_threads": 2}
    async with service(FakeEngine(), functions={"slow": slow, **FUNCTIONS}, config=config) as some:
        session = some.create_session()
        some.submit(session, program(*(native(f"n{idx}", "slow", {}, f"v{idx}") for idx in range(3))))
        for idx in range(3):
            assert isinstance((await fails(some, session, f"v{idx}")).__cause__, DeadlineExceeded)
        some.submit(session, program(native("m", "split", {"text": "ab"}, "head", "tail")))
        assert await some.get(session, "tail", deadline_s=10) == "b"
        release.set()

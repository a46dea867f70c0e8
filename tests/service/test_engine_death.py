"""An engine that dies: its calls run again, from what is there; readers see no difference, or an error."""

from __future__ import annotations

import asyncio

import pytest

from kea.errors import CallFailed, Conflict, EngineDied
from kea.types import GenerateOptions
from tests.fakes.engine import FakeEngine, scripted
from tests.service.programs import call, collect, fails, program, service, settle, states


@pytest.mark.parametrize("after_tokens", [0, 4, 8])
async def test_a_call_runs_again_and_its_reader_sees_one_text(after_tokens: int) -> None:
    engine = FakeEngine(scripted("abcdefgh"))
    async with service(engine) as some:
        session = some.create_session()
        engine.fail_next(EngineDied("gone"), after_tokens=after_tokens)
        some.submit(session, program(call("c", "p{{y}}", y={})))
        pieces: list[str] = []
        await collect(some.stream(session, "y"), pieces)
        assert "".join(pieces) == "abcdefgh"
        assert engine.record.prompts == ["p", "p"]
        assert some.status(session).calls[0].num_attempts == 2
        assert some.snapshot().num_retries == 1
        await settle(some)
        assert not engine.contexts


async def test_finished_outputs_are_not_written_again() -> None:
    engine = FakeEngine(scripted("one", "two", "TWO"))
    async with service(engine) as some:
        session = some.create_session()
        engine.fail_next(EngineDied("gone"), matches="B")
        some.submit(session, program(call("c", "A{{a}}B{{b}}C{{d}}", a={"stop": "!"}, b={}, d={})))
        assert await some.get(session, "d") == "TWO"
        assert await some.get(session, "a") == "one"
        assert engine.record.prompts == ["A", "AoneB", "AoneB", "AoneBTWOC"]
        assert engine.record.token_ids[1] == engine.record.token_ids[2]


async def test_every_run_of_a_drawn_output_has_the_same_seed() -> None:
    engine = FakeEngine()
    async with service(engine) as some:
        session = some.create_session()
        engine.fail_next(EngineDied("gone"))
        some.submit(session, program(call("c", "p{{y}}", y={})))
        await some.get(session, "y")
        some.submit(session, program(call("d", "q{{z}}", z={}), call("e", "r{{w}}", w={"temperature": 0})))
        await some.get(session, "z")
        await some.get(session, "w")
        first, again, other, greedy = (options.sampling.seed for options in engine.record.options)
        assert first is not None
        assert first == again != other
        assert greedy is None


async def test_unread_text_may_change_in_the_second_run() -> None:
    engine = FakeEngine(scripted("abcdefgh", "abXY"))
    async with service(engine) as some:
        session = some.create_session()
        engine.fail_next(EngineDied("gone"), after_tokens=4)
        some.submit(session, program(call("c", "p{{y}}", y={})))
        assert await some.get(session, "y") == "abXY"


async def test_read_text_may_not() -> None:
    engine = FakeEngine(scripted("abcdefgh", "abXY"))
    async with service(engine) as some:
        session = some.create_session()
        some.submit(session, program(call("c", "p{{y}}", y={}), call("d", "{{y}} {{z}}", z={})))
        stream = some.stream(session, "y")
        engine.fail_next(EngineDied("gone"), after_tokens=4)
        assert await anext(stream) == "abcd"
        with pytest.raises(CallFailed) as caught:
            await anext(stream)
        assert isinstance(caught.value.__cause__, Conflict)
        assert "behind character 2" in str(caught.value)
        assert isinstance((await fails(some, session, "z")).__cause__, Conflict)
        await settle(some)


async def test_attempts_are_bounded() -> None:
    engine = FakeEngine()
    async with service(engine, config={"max_attempts": 3}) as some:
        session = some.create_session()
        for _ in range(3):
            engine.fail_next(EngineDied("gone"), matches="p")
        some.submit(session, program(call("c", "p{{y}}", y={}), call("d", "fine{{z}}", z={})))
        cause = (await fails(some, session, "y")).__cause__
        assert isinstance(cause, EngineDied)
        assert cause.retryable
        assert some.status(session).calls[0].num_attempts == 3
        assert await some.get(session, "z") == "fine"


async def test_another_engine_takes_over() -> None:
    first, second = FakeEngine(scripted("one")), FakeEngine(scripted("one"))
    async with service(first, second) as some:
        session = some.create_session()
        first.hold()
        second.hold()
        some.submit(session, program(*(call(f"c{i}", f"p{i}{{{{v{i}}}}}", **{f"v{i}": {}}) for i in range(20))))
        await settle(some)
        assert (len(first.contexts), len(second.contexts)) == (10, 10)
        first.die()
        second.release()
        for idx in range(20):
            assert await some.get(session, f"v{idx}") == "one"
        assert len(second.record.prompts) == 20
        await settle(some)


async def test_an_engine_that_comes_back_goes_on() -> None:
    engine = FakeEngine()
    async with service(engine, config={"retry_delay_s": 0.02}) as some:
        session = some.create_session()
        engine.hold()
        some.submit(session, program(call("c", "p{{y}}", y={})))
        await settle(some)
        engine.die()
        await settle(some)
        assert states(some, session) == {"c": "queued"}
        engine.restart()
        engine.release()
        assert await some.get(session, "y") == "p"


async def test_a_call_may_be_cancelled_while_it_waits_to_run_again() -> None:
    engine = FakeEngine()
    async with service(engine, config={"retry_delay_s": 30.0}) as some:
        session = some.create_session()
        engine.fail_next(EngineDied("gone"))
        some.submit(session, program(call("c", "p{{y}}", y={})))
        await settle(some)
        assert some.cancel(session) == ["c"]
        await settle(some)
        assert states(some, session) == {"c": "cancelled"}


async def test_no_call_is_lost_when_engines_die_again_and_again() -> None:
    def reply(prompt: str, options: GenerateOptions) -> str:
        return f"<{len(prompt)}>"

    engines = [FakeEngine(reply) for _ in range(3)]
    async with service(*engines, config={"max_attempts": 50, "calls_per_engine": 4}) as some:
        session = some.create_session()
        calls = [call(f"c{i}", f"{{{{v{i // 2}}}}}.{{{{v{i + 1}}}}}", **{f"v{i + 1}": {}}) for i in range(200)]
        some.submit(session, program(*calls, v0="root"))
        for turn in range(60):
            engine = engines[turn % 3]
            engine.die()
            some.check()
            await asyncio.sleep(0.001)
            engine.restart()
        for idx in range(1, 201):
            assert (await some.get(session, f"v{idx}", deadline_s=20)).startswith("<")
        await settle(some)
        assert not any(engine.contexts for engine in engines)

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from kea.errors import (
    Cancelled,
    EngineDied,
    EngineFault,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    PermissionDenied,
)
from kea.program.status import CallState
from kea.service import ServiceConfig, check_secret
from tests.fakes.engine import FakeEngine, scripted
from tests.service.programs import call, fails, program, service, settle, shout, states


async def test_limits_are_kept() -> None:
    engine = FakeEngine()
    limits = {
        "max_sessions_per_tenant": 2,
        "max_pending_calls_per_session": 3,
        "max_pending_calls_per_tenant": 4,
        "max_variables_per_session": 6,
    }
    async with service(engine, config=limits) as some:
        engine.hold()
        session, other = some.create_session(tenant="t"), some.create_session(tenant="t")
        with pytest.raises(LimitExceeded, match="2 sessions are open"):
            some.create_session(tenant="t")
        some.create_session(tenant="u")
        calls = [call(f"c{idx}", f"p{{{{v{idx}}}}}", **{f"v{idx}": {}}) for idx in range(4)]
        with pytest.raises(LimitExceeded, match="session would have 4 pending calls; at most 3"):
            some.submit(session, program(*calls))
        some.submit(session, program(*calls[:3]))
        with pytest.raises(LimitExceeded, match="key would have 5 pending calls; at most 4"):
            some.submit(other, program(*calls[:2]))
        with pytest.raises(LimitExceeded, match="would have 7 variables"):
            some.submit(session, program(a="", b="", c="", d=""))
        engine.release()
        for idx in range(3):
            await some.get(session, f"v{idx}")
        await settle(some)
        some.submit(other, program(*calls[:2]))
        some.close_session(session)
        assert some.create_session(tenant="t").tenant.num_sessions == 2


async def test_the_memory_of_a_keys_sessions_is_bounded() -> None:
    engine = FakeEngine(scripted("é" * 4000, "short"))
    async with service(engine, config={"max_bytes_per_tenant": 30_000}) as some:
        first, second, other = (some.create_session(tenant=tenant) for tenant in "aab")
        some.submit(first, program(x=None, y="y" * 10_000))
        with pytest.raises(LimitExceeded, match=r"would hold \d+ bytes .* at most 30000 are allowed \(max_bytes_per_"):
            some.set(first, "x", "x" * 20_000)
        with pytest.raises(LimitExceeded, match="max_bytes_per_tenant"):
            some.submit(second, program(z="z" * 20_000))
        with pytest.raises(LimitExceeded, match="max_bytes_per_tenant"):
            some.submit(second, program(call("long", "z" * 10_000 + "{{out}}", out={})))
        assert not second.variables
        some.set(first, "x", "x" * 1000)
        some.submit(other, program(z="z" * 20_000))
        some.submit(second, program(call("c", "c{{out}}", out={"max_tokens": 2000})))
        failure = await fails(some, second, "out")
        assert isinstance(failure.__cause__, LimitExceeded), failure
        await settle(some)
        assert not engine.contexts
        some.close_session(first)
        some.close_session(second)
        third = some.create_session(tenant="a")
        some.submit(third, program(z="z" * 20_000))
        await settle(some)


async def test_a_call_that_runs_again_holds_its_text_once() -> None:
    engine = FakeEngine(scripted("a" * 400))
    async with service(engine, config={"max_bytes_per_tenant": 20_000}) as some:
        session = some.create_session()
        engine.fail_next(EngineDied("gone"), after_tokens=40)
        some.submit(session, program(call("c", "c{{out}}", out={})))
        assert await some.get(session, "out") == "a" * 400
        await settle(some)
        assert session.num_bytes - session.program_bytes == session.variables["out"].num_bytes > 400


async def test_sessions_belong_to_their_tenant_and_have_a_secret() -> None:
    async with service(FakeEngine()) as some:
        session = some.create_session(tenant="t", name="mine")
        assert 0 <= session.identity.id < 2**53
        assert some.session(session.identity.id, tenant="t") is session
        with pytest.raises(NotFound):
            some.session(session.identity.id, tenant="u")
        check_secret(session, session.identity.secret)
        for wrong in ("", "x", "ü", session.identity.secret + " "):
            with pytest.raises(PermissionDenied):
                check_secret(session, wrong)


async def test_idle_sessions_expire() -> None:
    now = [0.0]
    engine = FakeEngine()
    async with service(engine, config={"idle_s": 10.0}, clock=lambda: now[0]) as some:
        idle, used, read, busy = (some.create_session() for _ in range(4))
        some.submit(read, program(x=None))
        engine.hold()
        some.submit(busy, program(call("a", "a{{x}}", x={})))
        reader = asyncio.create_task(some.get(read, "x"))
        await settle(some)
        now[0] = 9.0
        some.session(used.identity.id)
        assert some.expire_idle() == 0
        now[0] = 11.0
        assert some.expire_idle() == 1
        with pytest.raises(NotFound, match="there is no session"):
            some.session(idle.identity.id)
        reader.cancel()
        engine.release()
        await settle(some)
        now[0] = 20.9
        assert some.expire_idle() == 1
        now[0] = 21.0
        assert some.expire_idle() == 2
        assert some.snapshot().num_sessions == 0


async def test_a_session_whose_calls_wait_for_a_client_that_went_away_expires() -> None:
    now = [0.0]
    async with service(FakeEngine(), config={"idle_s": 10.0}, clock=lambda: now[0]) as some:
        left = some.create_session()
        some.submit(left, program(call("a", "a{{x}}{{y}}", y={}), call("b", "{{y}}{{z}}", z={}), x=None))
        reader = asyncio.create_task(some.get(left, "z"))
        await settle(some)
        now[0] = 11.0
        assert some.expire_idle() == 0, "somebody reads"
        reader.cancel()
        await settle(some)
        now[0] = 21.0
        assert some.expire_idle() == 1
        assert some.snapshot().num_pending == 0


async def test_calls_whose_client_is_silent_are_cancelled_after_the_lease() -> None:
    now = [0.0]
    engine = FakeEngine()
    engine.hold()
    async with service(engine, clock=lambda: now[0]) as some:
        gone, there, read = (some.create_session(lease_s=10.0) for _ in range(3))
        own = some.create_session()
        for session in (gone, there, read, own):
            some.submit(session, program(call("a", "a{{x}}", x={}), call("b", "{{x}}{{y}}", y={})))
        reader = asyncio.create_task(some.get(read, "y"))
        await settle(some)
        now[0] = 9.0
        some.session(there.identity.id)
        assert some.cancel_forsaken() == 0
        now[0] = 11.0
        assert some.cancel_forsaken() == 2
        await settle(some)
        assert states(some, gone) == {"a": "cancelled", "b": "cancelled"}
        for session in (there, read, own):
            assert states(some, session) == {"a": "running", "b": "blocked"}
        failure = await fails(some, gone, "y")
        assert isinstance(failure, Cancelled)
        assert "call 'b' was cancelled: its session had no request and no reader for 10 s." in str(failure)
        reader.cancel()
        await settle(some)
        now[0] = 20.9
        assert some.cancel_forsaken() == 2, "the lease of one that was read begins with the reader's end"
        now[0] = 21.0
        assert some.cancel_forsaken() == 2
        assert states(some, own) == {"a": "running", "b": "blocked"}
        assert some.snapshot().num_sessions == 4


@pytest.mark.parametrize("field", ["calls_per_engine", "native_threads", "max_attempts"])
def test_a_setting_of_nothing_is_refused(field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{field} is 0; it must be at least 1"):
        ServiceConfig(**{field: 0})


async def test_cancelling_calls_one_by_one_is_cheap() -> None:
    """Quadratic time would be a minute; the bound is far above what is measured (under 1 s)."""
    engine = FakeEngine()
    async with service(engine) as some:
        session = some.create_session()
        engine.hold()
        calls = [call(f"c{idx}", f"{{{{v}}}}{{{{w{idx}}}}}", **{f"w{idx}": {}}) for idx in range(20_000)]
        some.submit(session, program(*calls, v="x"))
        started = time.perf_counter()
        for idx in range(20_000):
            assert some.cancel(session, [f"c{idx}"]) == [f"c{idx}"]
        assert time.perf_counter() - started < 10
        engine.release()
        await settle(some)


async def test_the_timeline_tells_of_every_call() -> None:
    now = [100.0]
    engine = FakeEngine(scripted("abcd", "ef"))
    async with service(engine, clock=lambda: now[0]) as some:
        session = some.create_session(name="n", tenant="t")
        now[0] = 101.0
        some.submit(session, program(call("c", "pq{{x}}{{a}}rs{{b}}", a={}, b={}), x=None))
        now[0] = 103.0
        some.set(session, "x", "t")
        await some.get(session, "b")
        await settle(some)
        now[0] = 110.0
        status = some.status(session)
        assert (status.name, status.tenant, status.age_s, status.num_pending, status.num_variables) == (
            "n",
            "t",
            10,
            0,
            3,
        )
        (row,) = status.calls
        assert row.state is CallState.DONE
        assert (row.submitted_s, row.blocked_s, row.total_s) == (1.0, 2.0, 2.0)
        assert (row.prompt_tokens, row.output_tokens, row.cached_tokens) == (6, 6, 0)
        assert (row.reads, row.writes, row.num_attempts, row.engine) == (("x",), ("a", "b"), 1, 0)


async def test_calls_wait_for_room_on_an_engine_in_application_order() -> None:
    engine = FakeEngine(shout)
    async with service(engine, config={"calls_per_engine": 1}) as some:
        first, second = some.create_session(), some.create_session()
        some.submit(second, program(call("s1", "s1{{a}}", a={}), call("s2", "s2{{b}}", b={})))
        some.submit(first, program(call("f1", "f1{{a}}", a={}), call("f2", "f2{{b}}", b={})))
        some.submit(first, program(replace(call("f0", "f0{{c}}", c={}), priority=-1)))
        assert await some.get(first, "b") == "F2"
        assert engine.record.prompts == ["f0", "s1", "s2", "f1", "f2"]
        assert [spec.priority for spec in engine.record.specs] == [-1, 0, 0, 0, 0]
        orders = [spec.order for spec in engine.record.specs[1:]]
        assert orders == sorted(orders)


async def test_calls_are_balanced_over_engines() -> None:
    engines = [FakeEngine() for _ in range(4)]
    async with service(*engines) as some:
        session = some.create_session()
        for engine in engines:
            engine.hold()
        some.submit(session, program(*(call(f"c{i}", f"p{{{{v{i}}}}}", **{f"v{i}": {}}) for i in range(16))))
        await settle(some)
        assert [len(engine.contexts) for engine in engines] == [4, 4, 4, 4]
        for engine in engines:
            engine.release()


async def test_the_snapshot_counts() -> None:
    engine = FakeEngine()
    async with service(engine) as some:
        session = some.create_session()
        engine.fail_next(EngineFault("no"), matches="bad")
        some.submit(
            session, program(call("a", "good{{x}}", x={}), call("b", "bad{{y}}", y={}), call("c", "{{y}}{{z}}", z={}))
        )
        await some.get(session, "x")
        await settle(some)
        snapshot = some.snapshot()
        assert (snapshot.num_sessions, snapshot.num_pending, snapshot.num_queued) == (1, 0, 0)
        assert snapshot.num_ended == {CallState.DONE: 1, CallState.FAILED: 2, CallState.CANCELLED: 0}

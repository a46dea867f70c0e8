"""What every transport does alike: the same application, embedded and against a server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import kea
from kea.client.outbox import Batch, Outbox
from kea.errors import (
    CallFailed,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    EngineDied,
    EngineFault,
    InvalidRequest,
    NotFound,
)
from kea.program.status import CallState
from tests.client.worlds import WORLDS, World


@kea.function
def greet(who: kea.Input, text: kea.Output(max_tokens=100)):  # type: ignore[no-untyped-def,valid-type]
    """hi {{who}}: {{text}}"""


@kea.function(temperature=0)
def both(who: kea.Input, first: kea.Output(), second: kea.Output(stop="!")):  # type: ignore[no-untyped-def,valid-type]
    """a {{who}} {{first}} b {{second}}"""


@kea.function(messages=[("system", "be {{how}}"), ("user", "{{question}}"), ("assistant", "well, {{answer}}")])
def chat(how, question: kea.Input, answer: kea.Output()):  # type: ignore[no-untyped-def,valid-type]
    """Answer as told."""


def let_one_step_through(world: World) -> None:
    world.engine.release()
    world.engine.hold()


@pytest.fixture(params=sorted(WORLDS), scope="module")
def shared_world(request: pytest.FixtureRequest) -> Iterator[World]:
    with WORLDS[request.param]() as world:
        yield world


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    yield shared_world
    shared_world.on_loop(shared_world.engine.release)
    shared_world.engine.faults.clear()


def test_a_chain_runs_without_the_client(world: World) -> None:
    with world.session("mine") as session:
        one = greet("bob")
        two = greet(one)
        assert isinstance(two, kea.Variable)
        assert two.get() == "HI HI BOB: : "
        assert one.get(kea.LATENCY) == "HI BOB: "
        rows = session.timeline()
        assert [(row.name, row.state) for row in rows] == [("greet", CallState.DONE)] * 2
        assert rows[1].reads == rows[0].writes == (one.id,)
        assert session.status().name == "mine"


def test_several_outputs_come_as_a_named_tuple(world: World) -> None:
    with world.session():
        result = both("x")
        assert result._fields == ("first", "second")
        assert result.first.get() == "A X "
        first, second = result
        assert second.get() == "A X A X  B "
        assert kea.gather(first, [second, "plain"], deadline_s=10) == ["A X ", ["A X A X  B ", "plain"]]


def test_lists_of_variables_at_any_depth(world: World) -> None:
    with world.session():
        names = [greet(name) for name in "ab"]
        assert greet([names[0], ("x", [names[1], 3]), []]).get() == "HI HI A: \nX\nHI B: \n3: "


def test_messages_run_through_the_chat_template(world: World) -> None:
    with world.session():
        answer = chat("kind", greet("x")).get()
    assert answer.startswith("<SYSTEM>BE KIND<END><USER>HI X:")
    assert answer.endswith("<ASSISTANT>WELL, ")


def test_a_stream_yields_the_whole_text(world: World) -> None:
    with world.session():
        pieces = list(greet("somebody").stream(kea.TTFT))
        assert "".join(pieces) == "HI SOMEBODY: "
        assert all(pieces)


def test_a_stream_comes_as_it_is_written(world: World) -> None:
    with world.session():
        world.on_loop(world.engine.hold)
        variable = greet("somebody")
        stream = variable.stream()
        seen: list[str] = []
        reader = threading.Thread(target=lambda: seen.append(next(stream)))
        reader.start()
        time.sleep(0.05)
        assert not seen
        world.on_loop(lambda: let_one_step_through(world))
        reader.join(10)
        assert seen
        assert seen[0]
        assert "HI SOMEBODY: ".startswith(seen[0])
        stream.close()
        world.on_loop(world.engine.release)
        assert variable.get() == "HI SOMEBODY: "


def test_a_stream_may_be_left_early(world: World) -> None:
    with world.session() as session:
        for variable in (greet("somebody"), session.variable("x" * 10)):
            for piece in variable.stream():
                assert piece
                break
        abandoned = greet("else").stream()
        assert next(abandoned)
    del abandoned


def test_variables_may_be_set_later_and_once(world: World) -> None:
    with world.session() as session:
        name = session.variable(name="who")
        result = greet(name)
        name.set("late")
        assert result.get() == "HI LATE: "
        assert session.variable("now").get() == "now"
        with pytest.raises(Conflict, match="set once"):
            name.set("again")
        with pytest.raises(Conflict, match="written by call 'greet'"):
            result.set("mine")
        with pytest.raises(InvalidRequest, match="a string, not int"):
            name.set(3)  # type: ignore[arg-type]


def test_a_declared_variable_may_be_given_as_an_output(world: World) -> None:
    with world.session() as session:
        target = session.variable()
        reader = greet(target)
        assert greet("x", text=target) is target
        assert reader.get() == "HI HI X: : "


def test_map_and_gather(world: World) -> None:
    with world.session() as session:
        texts = session.map(greet, ["a", "b", "c"])
        assert kea.gather(*texts) == ["HI A: ", "HI B: ", "HI C: "]
        many = session.map(greet, range(150))
        assert kea.gather(many, deadline_s=60) == [[f"HI {idx}: " for idx in range(150)]]
        pairs = session.map(chat, ["kind", "rude"], ["q", "r"])
        assert len(kea.gather(pairs)[0]) == 2
        with pytest.raises(ValueError, match="zip"):
            session.map(chat, ["kind", "rude"], ["q"])


@pytest.mark.parametrize("wrong", ["ab", b"ab", {"a": 1}, 7, None])
def test_a_map_runs_over_lists_alone(world: World, wrong: Any) -> None:
    with world.session() as session:
        with pytest.raises(InvalidRequest, match=r"map\(greet, \.\.\.\) is given .* it runs over a list"):
            session.map(greet, wrong)
        with pytest.raises(InvalidRequest, match=r"is given <kea\.Variable"):
            session.map(greet, greet("x"))


def test_a_failure_names_the_call_and_its_index_in_the_map(world: World) -> None:
    with world.session() as session:
        world.engine.fail_next(EngineFault("broken"), matches="hi 3")
        texts = session.map(greet, range(5))
        last = greet(greet(texts))
        with pytest.raises(CallFailed, match=r"^call 'greet\[3\]' failed: broken"):
            texts[3].get()
        with pytest.raises(CallFailed, match=r"^call 'greet' did not run: .* failed in call 'greet\[3\]': broken"):
            last.get()
        assert texts[4].get() == "HI 4: "
        assert repr(session.variable(name="n")) == "<kea.Variable n, declared>"
        states = ["submitted", "call_failed", "ready"]
        assert [*map(repr, texts[2:])] == [f"<kea.Variable text of greet[{2 + i}], {states[i]}>" for i in range(3)]
        with pytest.raises(InvalidRequest, match=r"argument 'who' of greet\[1\] is None"):
            session.map(greet, ["a", None])


def test_native_functions_of_the_operator(world: World) -> None:
    with world.session() as session:
        assert session.native("upper", text=greet("x"), suffix="?").get() == "HI X: ?"
        left, right = session.native("halves", text="abcd", outputs=["left", "right"])
        assert (left.get(), right.get()) == ("ab", "cd")
        with pytest.raises(NotFound, match="no native function 'rm'"):
            session.native("rm").get()


@pytest.mark.parametrize("value", [object(), float("nan"), ["\ud800"], {"key": {1, 2}}])
def test_what_is_no_json_never_leaves(world: World, value: object) -> None:
    with world.session() as session:
        with pytest.raises(InvalidRequest, match="input 'text' of upper is no JSON value"):
            session.native("upper", text=value)
        with pytest.raises(InvalidRequest, match="no JSON value"):
            session.native("upper", text=[greet("x")])
        later = session.variable()
        with pytest.raises(InvalidRequest, match="lone surrogate"):
            later.set("\ud800")
        with pytest.raises(InvalidRequest, match=r"value is <kea\.Variable .* allowed are str"):
            session.variable(later)  # type: ignore[arg-type]
        assert session.native("kind", value=(1, [2])).get() == "list", "as it comes out of JSON"


def test_errors_come_with_their_cause(world: World) -> None:
    with world.session():
        world.engine.fail_next(EngineFault("broken"), matches="hi bad")
        variable = greet("bad")
        last = greet(greet(variable))
        with pytest.raises(CallFailed, match="call 'greet' did not run") as caught:
            last.get()
        assert isinstance(caught.value.__cause__, EngineFault)
        with pytest.raises(CallFailed, match="broken"):
            list(variable.stream())
        with pytest.raises(CallFailed):
            kea.gather(greet("good"), last)
        assert greet("good").get() == "HI GOOD: "


def test_a_dead_engine_is_not_noticed(world: World) -> None:
    with world.session() as session:
        world.engine.fail_next(EngineDied("gone"), after_tokens=4, matches="hi lucky")
        assert "".join(greet("lucky").stream()) == "HI LUCKY: "
        assert session.timeline()[0].num_attempts == 2


def test_a_deadline_ends_the_reader_alone(world: World) -> None:
    with world.session():
        world.on_loop(world.engine.hold)
        variable = greet("x")
        with pytest.raises(DeadlineExceeded):
            variable.get(deadline_s=0.02)
        with pytest.raises(DeadlineExceeded):
            kea.gather(variable, deadline_s=0.02)
        world.on_loop(world.engine.release)
        assert variable.get(deadline_s=10) == "HI X: "


def test_cancelling_one_call_and_all(world: World) -> None:
    with world.session() as session:
        world.on_loop(world.engine.hold)
        one, other = greet("one"), greet("other")
        dependent = greet(one)
        one.cancel()
        with pytest.raises(Cancelled, match="'greet' was cancelled"):
            one.get()
        with pytest.raises(CallFailed, match="did not run"):
            dependent.get()
        assert session.cancel(one) == []
        assert session.cancel() == [other.call_id]
        with pytest.raises(Cancelled):
            other.get()
        world.on_loop(world.engine.release)
        assert greet("x").get() == "HI X: "
        states = [row.state for row in session.timeline()]
        assert states == [CallState.CANCELLED, CallState.CANCELLED, CallState.FAILED, CallState.DONE]


def test_a_refused_call_surfaces_on_its_variables(world: World) -> None:
    with world.session() as session:
        twice = session.variable("set")
        greet("x", text=twice)
        with pytest.raises(Conflict, match="set already"):
            twice.get()
        later = greet(twice)
        with pytest.raises(CallFailed, match="was not submitted") as caught:
            greet(later).get()
        assert isinstance(caught.value.__cause__, Conflict)
        assert greet("fine").get() == "HI FINE: "


def test_a_refused_call_leaves_its_neighbours_alone(world: World) -> None:
    with world.session() as session:
        first, refused, last = greet("x"), session.native("unknown"), greet("y")
        assert kea.gather(first, last) == ["HI X: ", "HI Y: "]
        with pytest.raises(NotFound, match="unknown"):
            refused.get()


def test_a_closed_session_answers_at_once(world: World) -> None:
    with world.session() as session:
        world.on_loop(world.engine.hold)
        done, pending = session.variable("here"), greet("x")
        assert done.get() == "here"
        waiting = pending.begin_read(None, None)
        time.sleep(0.05)
    with pytest.raises(Cancelled, match="session was closed"):
        waiting.result(10)
    assert done.get() == "here"
    with pytest.raises(Cancelled):
        pending.get()
    with pytest.raises(Cancelled):
        greet.submit(session, "y")
    with pytest.raises(Cancelled):
        greet(pending)
    with world.session() as ended:
        ended.close()
        with pytest.raises(Cancelled, match="session was closed"):
            greet("a text, if there were no session")
    with pytest.raises(Cancelled):
        session.status()


def test_calls_on_another_thread_name_their_session(world: World) -> None:
    with world.session() as session:
        seen: list[object] = []

        def work() -> None:
            seen.extend([greet("x"), greet.submit(session, "y").get(), greet(first).get()])

        first = greet("first")
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(20)
        assert isinstance(seen[0], kea.Rendered)
        assert seen[1:] == ["HI Y: ", "HI HI FIRST: : "]


def test_sessions_are_apart(world: World) -> None:
    with world.session() as one, world.session() as two:
        foreign = greet.submit(one, "x")
        with pytest.raises(InvalidRequest, match="belongs to another session"):
            greet(foreign)
        with pytest.raises(InvalidRequest, match="belongs to another session"):
            two.cancel([foreign])
        assert foreign.get() == greet("x").get()
    assert isinstance(greet("x"), kea.Rendered)


async def test_everything_can_be_awaited(world: World) -> None:
    async with world.session() as session:
        variable = greet("x")
        assert await variable.aget() == "HI X: "
        assert "".join([piece async for piece in greet(variable).astream()]) == "HI HI X: : "
        later = session.variable()
        result = greet(later)
        await later.aset("soon")
        assert (await kea.agather(session.map(greet, range(70))))[0][69] == "HI 69: "
        assert await kea.agather(result, (variable,)) == ["HI SOON: ", ("HI X: ",)]
        assert (await session.astatus()).num_pending == 0
        world.on_loop(world.engine.hold)
        stuck = greet("stuck")
        await stuck.acancel()
        with pytest.raises(Cancelled):
            await stuck.aget()
        assert await session.acancel() == []


async def test_a_cancelled_reader_leaves_the_call_alone(world: World) -> None:
    async with world.session():
        world.on_loop(world.engine.hold)
        variable = greet("x")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(variable.aget(), 0.05)
        world.on_loop(world.engine.release)
        assert await variable.aget() == "HI X: "


async def test_tasks_share_a_session(world: World) -> None:
    async with world.session():

        async def ask(name: str) -> str:
            return str(await greet(name).aget())

        assert await asyncio.gather(*(ask(str(idx)) for idx in range(20))) == [f"HI {idx}: " for idx in range(20)]


def test_a_thousand_calls_are_submitted_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    send = Outbox._submit

    async def count(outbox: Outbox, batch: Batch) -> None:
        batches.append(len(batch.calls))
        await send(outbox, batch)

    monkeypatch.setattr(Outbox, "_submit", count)
    with world.session() as session:
        total = greet(session.map(greet, range(1000)))
        assert total.get(deadline_s=60).startswith("HI HI 0: \nHI 1: \nHI 2: ")
        assert len(session.timeline()) == 1001
    assert sum(batches) == 1001
    assert len(batches) < 500

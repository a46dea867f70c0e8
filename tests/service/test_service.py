from __future__ import annotations

from dataclasses import replace
from typing import Any

from kea.errors import (
    ContextLengthExceeded,
    EngineFault,
)
from kea.program.call import InputParameter, VariableRef
from kea.types import Criteria, FinishReason, Usage
from tests.fakes.engine import FakeEngine, scripted
from tests.fakes.tokenizer import FakeTokenizer
from tests.service.programs import call, fails, program, service, settle, shout, states


async def test_a_call_reads_its_input_and_writes_its_output() -> None:
    engine = FakeEngine(shout)
    async with service(engine) as some:
        session = some.create_session()
        some.submit(session, program(call("c", "say {{x}}:{{y}}", y={}), x="hi"))
        assert await some.get(session, "y") == "SAY HI:"
        assert engine.record.prompts == ["say hi:"]
        await settle(some)
        assert not engine.contexts


async def test_results_flow_through_a_graph_without_the_client() -> None:
    engine = FakeEngine(shout)
    async with service(engine) as some:
        session = some.create_session()
        calls = [
            call("join", "{{left}}+{{right}}={{sum}}", sum={}),
            call("left", "l{{x}}{{left}}", left={}),
            call("right", "r{{x}}{{right}}", right={}),
        ]
        some.submit(session, program(*calls, x=None))
        await settle(some)
        assert states(some, session) == {"join": "blocked", "left": "blocked", "right": "blocked"}
        some.set(session, "x", "1")
        assert await some.get(session, "sum") == "L1+R1="
        assert set(states(some, session).values()) == {"done"}


async def test_several_outputs_share_one_context() -> None:
    engine = FakeEngine(scripted("one", "two", "three"))
    async with service(engine) as some:
        session = some.create_session()
        some.submit(session, program(call("c", "A{{a}}B{{b}}{{c}} tail", a={}, b={}, c={})))
        assert [await some.get(session, name) for name in "abc"] == ["one", "two", "three"]
        assert engine.record.prompts == ["A", "AoneB", "AoneBtwo"]
        assert len(engine.record.specs) == 1
        assert engine.record.prompt_tokens == 3  # begin of sequence, A, B


async def test_an_output_starts_the_calls_that_read_it_before_its_own_call_ends() -> None:
    engine = FakeEngine(lambda prompt, options: {"A": "one", "one!": "seen"}.get(prompt, "two"))
    async with service(engine) as some:
        session = some.create_session()
        engine.fail_next(EngineFault("late"), matches="B")
        some.submit(session, program(call("c", "A{{a}}B{{b}}", a={}, b={}), call("d", "{{a}}!{{e}}", e={})))
        assert await some.get(session, "e") == "seen"
        assert isinstance((await fails(some, session, "b")).__cause__, EngineFault)
        assert await some.get(session, "a") == "one"


async def test_text_after_a_stop_inside_a_token_is_kept() -> None:
    tokenizer = FakeTokenizer(("d``",))
    engine = FakeEngine(scripted("hello d```world", "x"), tokenizer=tokenizer)
    async with service(engine) as some:
        session = some.create_session()
        some.submit(session, program(call("c", "<{{a}}> then {{b}}", a={"stop": "```"}, b={})))
        assert await some.get(session, "a") == "hello d"
        assert await some.get(session, "b") == "x"
        assert engine.record.prompts[1] == "<hello d> then "


async def test_inputs_may_have_many_parts_and_none() -> None:
    engine = FakeEngine()
    async with service(engine) as some:
        session = some.create_session()
        one = call("c", "[{{items}}]{{y}}", y={})
        parts = ("first, ", VariableRef("p"), ", ", VariableRef("q"))
        two = replace(
            one,
            id="d",
            inputs=(InputParameter("items", ()),),
            outputs=call("d", "{{z}}", z={}).outputs,
            template="[{{items}}]{{z}}",
        )
        some.submit(session, program(replace(one, inputs=(InputParameter("items", parts),)), two, p="P", q="Q"))
        assert await some.get(session, "y") == "[first, P, Q]"
        assert await some.get(session, "z") == "[]"


async def test_a_stream_yields_the_pieces_from_the_beginning() -> None:
    engine = FakeEngine(scripted("abcdefgh"), chunk_tokens=2)
    async with service(engine) as some:
        session = some.create_session()
        some.submit(session, program(call("c", "p{{y}}", y={})))
        assert [piece async for piece in some.stream(session, "y", Criteria.TTFT)] == ["ab", "cd", "ef", "gh"]
        assert [piece async for piece in some.stream(session, "y")] == ["abcdefgh"]
        assert session.variables["y"].criteria == {Criteria.TTFT}


async def test_a_declared_variable_may_be_the_output_of_a_later_call() -> None:
    engine = FakeEngine()
    async with service(engine) as some:
        session = some.create_session()
        some.submit(session, program(call("b", "{{x}}!{{y}}", y={}), x=None))
        some.submit(session, program(call("a", "a{{x}}", x={})))
        assert await some.get(session, "y") == "a!"


async def test_max_tokens_is_cut_only_where_it_was_not_asked_for() -> None:
    engine = FakeEngine(lambda prompt, options: "y" * 1000, max_model_len=100)
    async with service(engine) as some:
        session = some.create_session()
        long = "x" * 50
        calls = [
            call("default", "{{x}}{{a}}", a={}),
            call("clamped", "{{x}}{{b}}", b={"max_tokens": 80, "clamp": True, "min_tokens": 70}),
            call("asked", "{{x}}{{c}}", c={"max_tokens": 80}),
            call("full", "{{x}}{{x}}{{d}}", d={}),
            call("second", "{{e}}{{f}}", e={"max_tokens": 90}, f={"max_tokens": 20}),
        ]
        some.submit(session, program(*calls, x=long))
        assert await some.get(session, "a") == "y" * 49
        assert await some.get(session, "b") == "y" * 49
        asked = (await fails(some, session, "c")).__cause__
        assert isinstance(asked, ContextLengthExceeded)
        assert "51 tokens stand before the output 'c', which may have 80 more; the model's context holds 100" in str(
            asked
        )
        assert "at most 49" in str(asked)
        full = (await fails(some, session, "d")).__cause__
        assert isinstance(full, ContextLengthExceeded)
        assert await some.get(session, "e") == "y" * 90
        assert isinstance((await fails(some, session, "f")).__cause__, ContextLengthExceeded)
        await settle(some)


async def test_a_text_that_cannot_fit_fails_its_call_unread() -> None:
    engine = FakeEngine(lambda prompt, options: "y", max_model_len=100)
    async with service(engine) as some:
        session = some.create_session()
        some.submit(session, program(call("c", "{{x}}{{a}}", a={}), x="x" * 500_001))
        error = (await fails(some, session, "a")).__cause__
        assert isinstance(error, ContextLengthExceeded)
        assert "500001 characters" in str(error)  # not tokens: it was not tokenised
        await settle(some)


async def test_an_empty_prompt_is_refused_where_no_token_begins_it() -> None:
    class NoBegin(FakeTokenizer):
        def encode(self, text: str, **options: Any) -> list[int]:
            return super().encode(text, **options | {"special": False})

    async with service(FakeEngine(tokenizer=NoBegin()), FakeEngine()) as some:
        session = some.create_session()
        some.submit(session, program(call("a", "{{x}}", x={})))
        assert "no text before the output 'x'" in str((await fails(some, session, "x")).__cause__)


async def test_a_tenants_many_calls_do_not_hold_up_anothers_one() -> None:
    engine = FakeEngine(shout)
    async with service(engine, config={"calls_per_engine": 2}) as some:
        many, one = some.create_session(tenant="many"), some.create_session(tenant="one")
        engine.hold()
        some.submit(many, program(*(call(f"c{idx}", f"{idx}:{{{{o{idx}}}}}", **{f"o{idx}": {}}) for idx in range(500))))
        some.submit(one, program(call("single", "s{{s}}", s={})))
        await settle(some)
        engine.release()
        assert await some.get(one, "s") == "S"
        assert some.status(many).num_pending > 490


class Told:
    """A meter that notes what it is told."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.later: list[tuple[float, int]] = []
        self.whole: list[float] = []

    def saw_first_token(self, seconds: float) -> None:
        self.first.append(seconds)

    def saw_next_tokens(self, seconds: float, num_tokens: int) -> None:
        self.later.append((seconds, num_tokens))

    def saw_end(self, _reason: FinishReason, _usage: Usage, seconds: float) -> None:
        self.whole.append(seconds)


async def test_outputs_are_timed_from_the_moment_in_which_their_inputs_are_ready() -> None:
    now = [0.0]
    engine = FakeEngine(scripted("12345678", "1234"))  # four tokens at once
    told = Told()
    async with service(engine, clock=lambda: now[0]) as some:
        some.measure(told)
        session = some.create_session()
        some.submit(session, program(call("c", "{{x}}{{a}}and{{b}}", a={}, b={}), x=None))
        now[0] = 5.0
        some.set(session, "x", "x")
        engine.hold()
        await settle(some)
        now[0] = 7.0
        engine.release()
        await some.get(session, "b")
    assert told.first == [2.0, 0.0]
    assert sum(number for _, number in told.later) == 7 + 3
    assert told.whole == [2.0, 0.0]

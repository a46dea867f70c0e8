from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence

import pytest

from kea.client.loop import LoopThread
from kea.client.outbox import Batch, Outbox
from kea.errors import CallFailed, Cancelled, InvalidRequest, KeaError, LimitExceeded
from kea.program.call import CallSpec, Program, VariableSpec
from kea.program.status import SessionStatus
from kea.types import Criteria
from tests.service.programs import call


class RecordingChannel:
    """Keeps what was submitted; refuses programs that contain a call named in `refused`."""

    def __init__(self) -> None:
        self.programs: list[list[str]] = []
        self.refused: set[str] = set()
        self.error: Exception = LimitExceeded("too many")
        self.gate: asyncio.Event | None = None

    async def submit(self, program: Program) -> None:
        self.programs.append([item.id for item in (*program.variables, *program.calls)])
        if self.gate is not None:
            await self.gate.wait()
        if self.refused & {item.id for item in program.calls}:
            raise self.error

    async def set(self, variable_id: str, value: str) -> None:
        raise NotImplementedError

    async def get(self, variable_id: str, criteria: Criteria | None, deadline_s: float | None) -> str:
        raise NotImplementedError

    def stream(self, variable_id: str, criteria: Criteria | None) -> AsyncGenerator[str]:
        raise NotImplementedError

    async def cancel(self, call_ids: Sequence[str] | None) -> list[str]:
        raise NotImplementedError

    async def status(self) -> SessionStatus:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.stop()


def simple(name: str, reads: str = "") -> list[CallSpec]:
    read = f"{{{{{reads}}}}}" if reads else ""
    return [call(name, f"p{read}{{{{{name}_out}}}}", **{f"{name}_out": {}})]


def test_what_is_added_together_goes_in_one_request(loop: LoopThread) -> None:
    channel = RecordingChannel()
    outbox = Outbox(loop, channel, 0.05)
    batches = [outbox.add(simple(f"c{idx}")) for idx in range(10)]
    assert outbox.add(variables=[VariableSpec("v")]) is batches[0]
    loop.run(outbox.settle())
    assert channel.programs == [["v", *(f"c{idx}" for idx in range(10))]]
    outbox.add(simple("next"))
    loop.run(outbox.settle())
    assert channel.programs[1:] == [["next"]]


def test_requests_go_one_behind_the_other(loop: LoopThread) -> None:
    channel = RecordingChannel()
    channel.gate = asyncio.Event()
    outbox = Outbox(loop, channel, 0.0)
    outbox.add(simple("first"))
    while not channel.programs:
        loop.run(asyncio.sleep(0.001))
    outbox.add(simple("second"))
    outbox.add(simple("third"))
    loop.run(asyncio.sleep(0.02))
    assert channel.programs == [["first"]]
    loop.call_soon(channel.gate.set)
    loop.run(outbox.settle())
    assert channel.programs == [["first"], ["second", "third"]]


def refusal(loop: LoopThread, outbox: Outbox, batch: Batch, variable: str) -> KeaError | None:
    try:
        loop.run(outbox.check(batch, variable))
    except KeaError as error:
        return error
    return None


def test_a_refused_request_fails_its_variables_and_what_reads_them(loop: LoopThread) -> None:
    channel = RecordingChannel()
    channel.refused = {"bad"}
    outbox = Outbox(loop, channel, 0.01)
    first = outbox.add([*simple("bad"), *simple("beside")], [VariableSpec("v")])
    loop.run(outbox.settle())
    for variable in ("bad_out", "beside_out", "v"):
        assert isinstance(refusal(loop, outbox, first, variable), LimitExceeded)
    second = outbox.add([*simple("reader", "bad_out"), *simple("again", "reader_out"), *simple("free")])
    error = refusal(loop, outbox, second, "again_out")
    assert isinstance(error, CallFailed)
    assert isinstance(error.__cause__, LimitExceeded)
    assert refusal(loop, outbox, second, "free_out") is None
    assert channel.programs[-1] == ["free"]


def test_closing_refuses_what_is_on_its_way(loop: LoopThread) -> None:
    channel = RecordingChannel()
    channel.gate = asyncio.Event()
    outbox = Outbox(loop, channel, 0.0)
    sent = outbox.add(simple("sent"))
    while not channel.programs:
        loop.run(asyncio.sleep(0.001))
    waiting = outbox.add(simple("waiting"))
    loop.run(outbox.close())
    assert isinstance(refusal(loop, outbox, sent, "sent_out"), Cancelled)
    assert isinstance(refusal(loop, outbox, waiting, "waiting_out"), Cancelled)
    with pytest.raises(Cancelled):
        outbox.add(simple("late"))


def test_a_call_is_refused_for_its_own_fault_alone(loop: LoopThread) -> None:
    channel = RecordingChannel()
    channel.refused, channel.error = {"c3"}, InvalidRequest("wrong")
    outbox = Outbox(loop, channel, 0.01)
    calls = [item for idx in range(8) for item in simple(f"c{idx}")]
    batch = outbox.add([*calls, *simple("reader", "c3_out")], [VariableSpec("v")])
    loop.run(outbox.settle())
    refused = [idx for idx in range(8) if refusal(loop, outbox, batch, f"c{idx}_out")]
    assert refused == [3]
    assert isinstance(refusal(loop, outbox, batch, "reader_out"), CallFailed)
    assert refusal(loop, outbox, batch, "v") is None
    accepted = [item for program in channel.programs if "c3" not in program for item in program]
    assert accepted == ["v", *(f"c{idx}" for idx in range(8) if idx != 3)], "in order, and once"


def test_what_has_no_room_ends_the_search(loop: LoopThread) -> None:
    channel = RecordingChannel()
    channel.refused = {f"c{idx}" for idx in range(3, 1000)}
    channel.error = LimitExceeded("too many", param="calls")
    outbox = Outbox(loop, channel, 0.01)
    batch = outbox.add([item for idx in range(1000) for item in simple(f"c{idx}")])
    loop.run(outbox.settle())
    assert [idx for idx in range(1000) if not refusal(loop, outbox, batch, f"c{idx}_out")] == [0, 1, 2]
    assert len(channel.programs) < 30


def test_a_fault_of_our_own_is_told_and_later_calls_go_on(loop: LoopThread) -> None:
    channel = RecordingChannel()
    channel.refused, channel.error = {"bad"}, TypeError("no JSON")
    outbox = Outbox(loop, channel, 0.0)
    first = outbox.add(simple("bad"))
    error = refusal(loop, outbox, first, "bad_out")
    assert isinstance(error, CallFailed)
    assert "no JSON" in str(error)
    assert refusal(loop, outbox, outbox.add(simple("next")), "next_out") is None


def test_the_error_of_a_long_chain_names_the_first_cause_alone(loop: LoopThread) -> None:
    channel = RecordingChannel()
    channel.refused = {"bad"}
    outbox = Outbox(loop, channel, 0.0)
    outbox.add(simple("bad"))
    loop.run(outbox.settle())
    chain = [item for idx in range(500) for item in simple(f"c{idx}", f"c{idx - 1}_out" if idx else "bad_out")]
    error = refusal(loop, outbox, outbox.add(chain), "c499_out")
    assert len(str(error)) < 200
    assert isinstance(error.__cause__ if error else None, LimitExceeded)

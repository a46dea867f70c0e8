"""The client over a scripted channel: what becomes of commands and streams when engines die, start again and close."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from kea.cluster import Died, EngineClient, Ready, client
from kea.cluster.base import Receiver
from kea.engine.base import (
    Cancel,
    Capabilities,
    Command,
    ContextSpec,
    CreateContext,
    EngineInfo,
    Free,
    Generate,
    Generated,
)
from kea.errors import EngineDied, ServiceClosing
from kea.types import Chunk, Finish, FinishReason, GenerateOptions, Stopping, Usage

INFO = EngineInfo("fake", 100, 10, (2,), 4, 25, 8, "cpu", "float32", "float32", "reference", Capabilities())
OPTIONS = GenerateOptions(Stopping(5))
LAST = Chunk((1,), "a", finish=Finish(FinishReason.LENGTH, Usage(1, 0, 1, 0, 0, 0), 2))


class ScriptedChannel:
    """A channel that says what a test tells it to say. Opens with `Ready`, unless `refusals` are left."""

    def __init__(self) -> None:
        self.receivers: list[Receiver] = []
        self.sent: list[Command] = []
        self.refusals: list[Exception | None] = []  # an exception: `open` raises it; None: the engine dies loading
        self.is_open = False
        self.may_open = threading.Event()
        self.may_open.set()

    def open(self, receive: Receiver) -> None:
        assert self.may_open.wait(10)
        assert not self.is_open, "opened twice"
        refusal = self.refusals.pop(0) if self.refusals else False
        if isinstance(refusal, Exception):
            raise refusal
        self.is_open = True
        self.receivers.append(receive)
        receive([Died(EngineDied("died loading"))] if refusal is None else [Ready(INFO)])

    def send(self, commands: Sequence[Command]) -> None:
        assert self.is_open, "sent to a closed channel"
        self.sent.extend(commands)

    def close(self) -> None:
        self.is_open = False

    def die(self) -> None:
        self.receivers[-1]([Died(EngineDied("killed"))])


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> ScriptedChannel:
    monkeypatch.setattr(client, "MAX_PAUSE_S", 0.01)
    return ScriptedChannel()


async def _until(condition: object, engine: EngineClient) -> None:
    for _ in range(500):
        if condition():  # type: ignore[operator]
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


async def _collect(stream: object) -> list[Chunk]:
    return [chunk async for chunk in stream]  # type: ignore[attr-defined]


async def test_after_the_close_everything_is_answered(channel: ScriptedChannel) -> None:
    engine = await EngineClient.start(channel)
    context = engine.create_context(ContextSpec())
    child = context.fork()
    await engine.close()
    context.append([1])
    engine.clear_cache()
    for late in (context, child):
        with pytest.raises(ServiceClosing):
            await asyncio.wait_for(_collect(late.generate(OPTIONS)), 1)
    context.free()
    with pytest.raises(ServiceClosing):
        await engine.snapshot()
    assert not engine.given_up.done()
    await asyncio.sleep(0.01)
    assert not any(isinstance(command, Generate) for command in channel.sent)


async def test_a_close_during_a_restart_leaves_nothing_open(channel: ScriptedChannel) -> None:
    engine = await EngineClient.start(channel)
    channel.may_open.clear()
    channel.die()
    await asyncio.sleep(0.05)  # the restart waits in `open`
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0.05)
    channel.may_open.set()
    await closing
    await asyncio.sleep(0.05)
    assert not channel.is_open


async def test_commands_for_the_next_engine_wait_for_it(channel: ScriptedChannel) -> None:
    engine = await EngineClient.start(channel)
    old = engine.create_context(ContextSpec())
    await asyncio.sleep(0)
    channel.may_open.clear()
    channel.die()
    await _until(lambda: not engine.is_alive, engine)
    channel.sent.clear()
    new = engine.create_context(ContextSpec())
    stream = new.generate(OPTIONS)
    with pytest.raises(EngineDied):
        await _collect(old.generate(OPTIONS))
    old.free()
    channel.may_open.set()
    await _until(lambda: engine.is_alive, engine)
    assert [type(command) for command in channel.sent] == [CreateContext, Generate]
    generate = channel.sent[1]
    assert isinstance(generate, Generate)
    channel.receivers[0]([Generated(generate.generation_id, LAST)])  # the old engine's voice
    channel.receivers[1]([Generated(generate.generation_id, LAST)])
    assert await _collect(stream) == [LAST]
    await engine.close()


@pytest.mark.parametrize("refusal", [OSError("no memory"), None])
async def test_an_engine_that_does_not_come_back_is_given_up(
    channel: ScriptedChannel, refusal: Exception | None
) -> None:
    engine = await EngineClient.start(channel)
    channel.refusals = [refusal] * 2
    channel.die()
    await _until(lambda: engine.is_alive and not channel.refusals, engine)
    context = engine.create_context(ContextSpec())
    assert not engine.given_up.done()
    channel.refusals = [refusal] * 20
    channel.die()
    assert await asyncio.wait_for(engine.given_up, 5) is engine.failure
    with pytest.raises(EngineDied, match="given up"):
        engine.create_context(ContextSpec())
    with pytest.raises(EngineDied):
        await _collect(context.generate(OPTIONS))
    await engine.close()


async def test_the_second_death_is_followed_by_a_pause(
    channel: ScriptedChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_PAUSE_S", 0.3)
    engine = await EngineClient.start(channel)
    states = []
    for _ in range(2):
        channel.die()
        await asyncio.sleep(0.1)
        states.append(engine.is_alive)
    assert states == [True, False]
    await _until(lambda: engine.is_alive, engine)
    await engine.close()


async def test_a_generation_that_is_over_is_not_cancelled(channel: ScriptedChannel) -> None:
    engine = await EngineClient.start(channel)
    context = engine.create_context(ContextSpec())
    stream = context.generate(OPTIONS)
    await asyncio.sleep(0.01)
    generate = channel.sent[-1]
    assert isinstance(generate, Generate)
    channel.receivers[0]([Generated(generate.generation_id, LAST)])
    await _collect(stream)
    stream.cancel()
    context.free()
    await asyncio.sleep(0.01)
    assert [type(command) for command in channel.sent] == [CreateContext, Generate, Free]
    assert Cancel not in map(type, channel.sent)
    await engine.close()

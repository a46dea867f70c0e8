"""What loads is left behind where nobody waits for it any more: nothing waits, and it says nothing more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from kea.cluster import Loading, Message, Ready, ThreadChannel, thread
from kea.cluster.abandoned import call_on_thread
from kea.cluster.base import Receiver
from kea.cluster.loop import Inbox
from kea.engine.base import Capabilities, EngineInfo
from kea.engine.config import EngineConfig

INFO = EngineInfo("fake", 100, 10, (2,), 4, 25, 8, "cpu", "float32", "float32", "reference", Capabilities())
WAIT_S = 10


class ScriptedEngine:
    """An engine that reports its loading, then waits for the test; afterwards it reports `after`, until it closes."""

    def __init__(self, after: Message) -> None:
        self.after = after
        self.is_loading = threading.Event()
        self.may_go_on = threading.Event()
        self.is_told = threading.Event()
        self.has_ended = threading.Event()

    def run(self, _: EngineConfig, inbox: Inbox, receive: Receiver) -> None:
        try:
            receive([Loading("weights", 0.5)])
            self.is_loading.set()
            assert self.may_go_on.wait(WAIT_S)
            receive([self.after])
            self.is_told.set()
            while inbox.get(timeout=WAIT_S) is not None:
                pass
        finally:
            self.has_ended.set()


def _open(engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> tuple[ThreadChannel, list[Message]]:
    said: list[Message] = []

    def receive(messages: Sequence[Message]) -> None:
        said.extend(messages)

    monkeypatch.setattr(thread, "run_engine", engine.run)
    channel = ThreadChannel(EngineConfig("fake"))
    channel.open(receive)
    assert engine.is_loading.wait(WAIT_S)
    return channel, said


@pytest.mark.parametrize("after", [Loading("weights", 0.6), Ready(INFO)], ids=["loading", "ready"])
def test_a_close_does_not_wait_for_a_model_that_loads(after: Message, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(after)
    channel, said = _open(engine, monkeypatch)
    channel.close()  # returns although the engine waits for what comes behind it
    assert not engine.has_ended.is_set()
    engine.may_go_on.set()
    assert engine.has_ended.wait(WAIT_S)
    assert said == [Loading("weights", 0.5)]
    assert not engine.is_told.is_set(), "loading went on"


def test_a_close_waits_for_an_engine_that_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(Ready(INFO))
    channel, said = _open(engine, monkeypatch)
    engine.may_go_on.set()
    assert engine.is_told.wait(WAIT_S)
    channel.close()
    assert engine.has_ended.is_set()
    assert said == [Loading("weights", 0.5), Ready(INFO)]


def test_a_channel_is_opened_again_beside_what_was_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    left = ScriptedEngine(Ready(INFO))
    channel, said = _open(left, monkeypatch)
    channel.close()
    second = ScriptedEngine(Ready(INFO))
    monkeypatch.setattr(thread, "run_engine", second.run)
    channel.open(said.extend)
    second.may_go_on.set()
    assert second.is_told.wait(WAIT_S)
    left.may_go_on.set()
    assert left.has_ended.wait(WAIT_S)
    channel.close()
    assert second.has_ended.is_set()
    assert said.count(Ready(INFO)) == 1


async def test_a_call_gives_its_result_or_its_error() -> None:
    assert await call_on_thread(lambda: threading.current_thread() is not threading.main_thread())
    with pytest.raises(ZeroDivisionError):
        await call_on_thread(lambda: 1 // 0)


async def test_a_cancelled_call_is_left_behind() -> None:
    may_go_on, has_ended = threading.Event(), threading.Event()

    def work() -> None:
        assert may_go_on.wait(WAIT_S)
        has_ended.set()

    task = asyncio.create_task(call_on_thread(work))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not has_ended.is_set()
    may_go_on.set()
    assert await asyncio.to_thread(has_ended.wait, WAIT_S)

"""Reads that begin together share a request, and each has its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from kea.client.reading import Answer, SharedReads
from kea.errors import CallFailed, KeaError, Unreachable
from kea.types import Criteria


class Service:
    """Answers in the order in which `say` is called; `None` ends the answer."""

    def __init__(self) -> None:
        self.requests: list[tuple[list[str], Criteria | None]] = []
        self.num_closed = 0
        self._said: asyncio.Queue[tuple[str, Answer] | KeaError | None] = asyncio.Queue()

    def say(self, *answers: tuple[str, Answer] | KeaError | None) -> None:
        for answer in answers:
            self._said.put_nowait(answer)

    async def read_each(
        self, variable_ids: Sequence[str], criteria: Criteria | None
    ) -> AsyncGenerator[tuple[str, Answer]]:
        self.requests.append((list(variable_ids), criteria))
        try:
            while (answer := await self._said.get()) is not None:
                if isinstance(answer, KeaError):
                    raise answer
                yield answer
        finally:
            self.num_closed += 1


async def test_reads_that_begin_together_share_a_request() -> None:
    service = Service()
    reads = SharedReads(service.read_each, 0.0)
    tasks = [asyncio.create_task(reads.get(name, None)) for name in "abab"]
    await asyncio.sleep(0.01)
    service.say(("b", CallFailed("broken")), ("a", "A"), ("a", "A"), None)
    assert [await tasks[0], await tasks[2]] == ["A", "A"]
    for task in (tasks[1], tasks[3]):
        with pytest.raises(CallFailed, match="broken"):
            await task
    other = asyncio.create_task(reads.get("a", Criteria.LATENCY))
    service.say(("a", "B"), None)
    assert await other == "B"
    later = asyncio.create_task(reads.get("c", None))
    service.say(("c", "C"), None)
    assert await later == "C"
    assert service.requests == [(["a", "b"], None), (["a"], Criteria.LATENCY), (["c"], None)]


@pytest.mark.parametrize("end", [None, Unreachable("gone")])
async def test_an_answer_that_ends_early_is_an_error_to_who_still_waits(end: KeaError | None) -> None:
    service = Service()
    reads = SharedReads(service.read_each, 0.0)
    tasks = [asyncio.create_task(reads.get(name, None)) for name in "ab"]
    service.say(("a", "A"), end)
    assert await tasks[0] == "A"
    with pytest.raises(Unreachable):
        await tasks[1]


async def test_a_request_ends_when_its_last_reader_goes_away() -> None:
    service = Service()
    reads = SharedReads(service.read_each, 0.0)
    tasks = [asyncio.create_task(reads.get(name, None)) for name in "ab"]
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    await asyncio.sleep(0.01)
    assert service.num_closed == 0
    tasks[1].cancel()
    await asyncio.sleep(0.01)
    assert service.num_closed == 1


async def test_readers_that_go_away_before_it_is_sent_harm_nobody() -> None:
    service = Service()
    reads = SharedReads(service.read_each, 0.01)
    early = asyncio.create_task(reads.get("a", None))
    await asyncio.sleep(0)
    early.cancel()
    late = asyncio.create_task(reads.get("b", None))
    service.say(("b", "B"), None)
    assert await asyncio.wait_for(late, 5) == "B"

"""Every output of a session, read while it is written: a transport around a transport. Knows no terminal.

It sees the calls as they are submitted and reads each output on the connection's loop, whether or not the application
reads it. What it read goes to a `Reader`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from kea.cli.labels import label_calls
from kea.client.transport import Channel, Transport
from kea.errors import Cancelled, KeaError
from kea.program.call import AnyCall, Program
from kea.program.status import SessionStatus
from kea.types import Criteria

MAX_READERS = 64


class Reader(Protocol):
    """Who is told what is written. `now_s` is the loop's clock, in seconds."""

    def write(self, variable_id: str, label: str, piece: str, now_s: float) -> None: ...

    def finish(self, variable_id: str, label: str, now_s: float) -> None: ...

    def fail(self, variable_id: str, label: str, reason: str) -> None: ...


class WatchedTransport:
    """Passes everything on to `inner`; sessions opened through it are watched."""

    def __init__(self, inner: Transport, reader: Reader) -> None:
        self._inner = inner
        self._reader = reader
        self._channels: list[WatchedChannel] = []

    @property
    def linger_s(self) -> float:
        return self._inner.linger_s

    async def open(self) -> None:
        await self._inner.open()

    async def open_session(self, name: str) -> Channel:
        channel = WatchedChannel(await self._inner.open_session(name), self._reader)
        self._channels.append(channel)
        return channel

    async def settle(self) -> None:
        """Wait until every output of the calls submitted so far was read to its end; runs on the connection's loop."""
        for channel in self._channels:
            await channel.settle()

    async def close(self) -> None:
        await self._inner.close()


class WatchedChannel:
    """One session: a task per output, at most `MAX_READERS` of them reading at once."""

    def __init__(self, inner: Channel, reader: Reader) -> None:
        self._inner = inner
        self._reader = reader
        self._calls: list[AnyCall] = []
        self._labels: Mapping[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(MAX_READERS)

    async def submit(self, program: Program) -> None:
        await self._inner.submit(program)
        self._calls += program.calls
        self._labels = label_calls(self._calls)
        for call in program.calls:
            for output in call.outputs:
                task = asyncio.get_running_loop().create_task(self._read(call, output.variable_id, output.name))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def set(self, variable_id: str, value: str) -> None:
        await self._inner.set(variable_id, value)

    async def get(self, variable_id: str, criteria: Criteria | None, deadline_s: float | None) -> str:
        return await self._inner.get(variable_id, criteria, deadline_s)

    def stream(self, variable_id: str, criteria: Criteria | None) -> AsyncGenerator[str]:
        return self._inner.stream(variable_id, criteria)

    async def cancel(self, call_ids: Sequence[str] | None) -> list[str]:
        return await self._inner.cancel(call_ids)

    async def status(self) -> SessionStatus:
        return await self._inner.status()

    async def close(self) -> None:
        """Stop reading, and end the session."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._inner.close()

    async def _read(self, call: AnyCall, variable_id: str, name: str) -> None:
        clock = asyncio.get_running_loop().time
        try:
            async with self._places:
                async for piece in self._inner.stream(variable_id, None):
                    self._reader.write(variable_id, self._label(call, name), piece, clock())
            self._reader.finish(variable_id, self._label(call, name), clock())
        except Cancelled:
            self._reader.fail(variable_id, self._label(call, name), "It was cancelled.")
        except KeaError as error:
            self._reader.fail(variable_id, self._label(call, name), str(error))

    def _label(self, call: AnyCall, name: str) -> str:
        label = self._labels[call.id]
        return label if len(call.outputs) == 1 else f"{label}: {name}"

"""`Engine` over a channel: the caller's side of an engine that runs on another thread or in another process.

Owns the ids, the streams of running generations and the engine's restarts. When the engine dies, every running
generation raises `EngineDied` (retryable), contexts made on it raise the same from then on, and the channel is opened
again: at once after the first death, later each time after a longer pause. A new context waits for the new engine.
Knows no prompts, no models. All methods are called on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from kea.cluster.base import Channel, Died, Loading, Message, Ready
from kea.engine.base import (
    Append,
    Cancel,
    ClearCache,
    Command,
    ContextFailed,
    ContextSpec,
    CreateContext,
    Drop,
    EngineInfo,
    Event,
    Fork,
    Free,
    Generate,
    Generated,
    GenerationFailed,
    Snapshot,
    SnapshotTaken,
    TakeSnapshot,
    Truncate,
)
from kea.errors import EngineDied, KeaError, ServiceClosing
from kea.types import Chunk, GenerateOptions

logger = logging.getLogger(__name__)

MAX_RESTARTS = 5
RESTART_WINDOW_S = 600.0
MAX_PAUSE_S = 8.0
OnLoading = Callable[[Loading], None]


class EngineClient:
    """One engine behind a channel. Made by `start`; `close` ends the engine.

    `given_up` is set, to the reason, once the engine died too often: then nobody will be answered any more.
    """

    def __init__(self, channel: Channel, on_loading: OnLoading | None = None) -> None:
        self._channel = channel
        self._on_loading = on_loading
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._streams: dict[int, ChunkStream] = {}
        self._snapshots: dict[int, asyncio.Future[Snapshot]] = {}
        self._outbox: list[Command] = []
        self._is_ready = False
        self._closing = asyncio.Event()
        self._restart: asyncio.Task[None] | None = None
        self._failure: KeaError | None = None
        self._started: asyncio.Future[EngineInfo] = self._loop.create_future()
        self._info: EngineInfo | None = None
        self.given_up: asyncio.Future[KeaError] = self._loop.create_future()
        self.epoch = 0
        self.num_restarts = 0
        self._deaths_s: deque[float] = deque()
        self._died_s: float | None = None

    @classmethod
    async def start(cls, channel: Channel, on_loading: OnLoading | None = None) -> EngineClient:
        """Open the channel and wait until the model is loaded. Raises `ModelLoadFailed` or what else prevented it."""
        client = cls(channel, on_loading)
        client._open()
        try:
            await client._started
        except BaseException:
            await client.close()
            raise
        return client

    @property
    def info(self) -> EngineInfo:
        assert self._info is not None, "the engine was never started"
        return self._info

    @property
    def is_alive(self) -> bool:
        return self._is_ready

    def create_context(self, spec: ContextSpec) -> ClientContext:
        if self.failure is not None:
            raise self.failure
        context = ClientContext(self, next(self._ids), self.epoch)
        self.send(CreateContext(context.context_id, spec))
        return context

    async def snapshot(self, *, check: bool = False) -> Snapshot:
        if self.failure is not None:
            raise self.failure
        request_id = next(self._ids)
        future: asyncio.Future[Snapshot] = self._loop.create_future()
        self._snapshots[request_id] = future
        self.send(TakeSnapshot(request_id, check))
        return await future

    def clear_cache(self) -> None:
        """Forget every cached page that no context uses."""
        self.send(ClearCache())

    async def close(self) -> None:
        """Fail what still runs with `ServiceClosing`, end the engine and wait for its end."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._failure = ServiceClosing("The engine is closing.")
        self._fail_all(self._failure)
        if self._restart is not None:
            await self._restart  # it must not open the channel behind its end
        await asyncio.to_thread(self._channel.close)

    # For contexts and streams

    @property
    def failure(self) -> KeaError | None:
        """Why no engine will answer any more: it is closing, or it was given up; None while one does or will."""
        return self._failure

    def next_id(self) -> int:
        return next(self._ids)

    def send(self, command: Command) -> None:
        """Send a command with the others of this turn of the event loop; nobody takes it where there is a `failure`."""
        if self._failure is not None:
            return
        if not self._outbox and self._is_ready:
            self._loop.call_soon(self._flush)
        self._outbox.append(command)

    def generate(self, context_id: int, options: GenerateOptions) -> ChunkStream:
        generation_id = self.next_id()
        stream = self._streams[generation_id] = ChunkStream(self, generation_id)
        self.send(Generate(context_id, generation_id, options))
        return stream

    def cancel(self, generation_id: int) -> None:
        """Cancel a generation that still runs."""
        if generation_id in self._streams:
            self.send(Cancel(generation_id))

    # The channel's side

    def _open(self) -> None:
        epoch = self.epoch
        self._channel.open(lambda messages: self._deliver(epoch, messages))

    def _deliver(self, epoch: int, messages: Sequence[Message]) -> None:
        """Called on the channel's thread."""
        try:
            self._loop.call_soon_threadsafe(self._receive, epoch, messages)
        except RuntimeError:
            logger.debug("the event loop is closed; %d messages of the engine have no reader", len(messages))

    def _flush(self) -> None:
        if self._is_ready and self._outbox:
            commands, self._outbox = self._outbox, []
            self._channel.send(commands)

    def _receive(self, epoch: int, messages: Sequence[Message]) -> None:
        if epoch != self.epoch:
            return
        for message in messages:
            if isinstance(message, Loading | Ready | Died):
                self._follow(message)
            else:
                self._dispatch(message)

    def _follow(self, message: Loading | Ready | Died) -> None:
        """Follow the engine from its loading to its end."""
        match message:
            case Loading():
                if self._on_loading is not None:
                    self._on_loading(message)
            case Ready():
                self._become_ready(message.info)
            case Died():
                self._bury(message.error)

    def _dispatch(self, event: Event) -> None:
        match event:
            case Generated():
                self._pass_on(event)
            case GenerationFailed():
                self._end_stream(event.generation_id, event.error)
            case ContextFailed():
                logger.debug("context %d failed: %s", event.context_id, event.error)
            case SnapshotTaken():
                self._answer(event)

    def _pass_on(self, message: Generated) -> None:
        stream = self._streams.get(message.generation_id)
        if stream is None:
            return
        stream.put(message.chunk)
        if message.chunk.finish is not None:
            del self._streams[message.generation_id]

    def _end_stream(self, generation_id: int, error: KeaError) -> None:
        stream = self._streams.pop(generation_id, None)
        if stream is not None:
            stream.fail(error)

    def _answer(self, message: SnapshotTaken) -> None:
        future = self._snapshots.pop(message.request_id, None)
        if future is not None and not future.done():
            future.set_result(message.snapshot)

    def _become_ready(self, info: EngineInfo) -> None:
        self._info = info
        self._is_ready = True
        if not self._started.done():
            self._started.set_result(info)
        if self._died_s is not None:
            logger.warning("the engine is back after %.1f s", self._loop.time() - self._died_s)
            self._died_s = None
        self._flush()

    def _bury(self, error: KeaError) -> None:
        """The engine is gone: fail what ran on it and open the channel again."""
        if self._closing.is_set():
            return
        self._is_ready = False
        if not self._started.done():
            self._started.set_exception(error)
            return
        logger.error("the engine died with %d running outputs: %s", len(self._streams), error)
        self._died_s = self._died_s or self._loop.time()
        self._fail_all(EngineDied(str(error), hint="Send the request again."))
        self.epoch += 1
        num_deaths = self._count_death()
        if num_deaths > MAX_RESTARTS:
            self._failure = EngineDied(
                f"The engine died {num_deaths} times within {RESTART_WINDOW_S:.0f} s and is given up: {error}"
            )
            self.given_up.set_result(self._failure)
            return
        pause_s = 0.0 if num_deaths == 1 else min(MAX_PAUSE_S, 2.0 ** (num_deaths - 2))
        self._restart = self._loop.create_task(self._reopen(pause_s))

    def _count_death(self) -> int:
        """Return how often the engine has died within the window, with this time."""
        now = self._loop.time()
        self._deaths_s.append(now)
        while self._deaths_s[0] < now - RESTART_WINDOW_S:
            self._deaths_s.popleft()
        return len(self._deaths_s)

    async def _reopen(self, pause_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), pause_s)
        try:
            await asyncio.to_thread(self._channel.close)
            if not self._closing.is_set():
                await asyncio.to_thread(self._open)
                self.num_restarts += 1
        except Exception as error:
            logger.exception("the engine could not be started again")
            self._bury(EngineDied(f"The engine could not be started again: {error!r}."))

    def _fail_all(self, error: KeaError) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(error)
        snapshots, self._snapshots = self._snapshots, {}
        for future in snapshots.values():
            if not future.done():
                future.set_exception(error)
        self._outbox.clear()


class ChunkStream:
    """A running generation. One reader; ends after the chunk that carries `finish`.

    The engine does not wait for the reader: what was not read is kept, at most `max_tokens` chunks.
    """

    def __init__(self, client: EngineClient, generation_id: int) -> None:
        self._client = client
        self._generation_id = generation_id
        self._queue: asyncio.Queue[Chunk | KeaError] = asyncio.Queue()

    def put(self, chunk: Chunk) -> None:
        self._queue.put_nowait(chunk)

    def fail(self, error: KeaError) -> None:
        self._queue.put_nowait(error)

    def cancel(self) -> None:
        """Ask for the end; the stream still ends with a chunk (reason CANCELLED) or an error."""
        self._client.cancel(self._generation_id)

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while True:
            item = await self._queue.get()
            if isinstance(item, KeaError):
                raise item
            yield item
            if item.finish is not None:
                return


class ClientContext:
    """A context on the engine's side. Its maker frees it; after the engine's death it only raises `EngineDied`."""

    def __init__(self, client: EngineClient, context_id: int, epoch: int) -> None:
        self._client = client
        self._epoch = epoch
        self._is_free = False
        self.context_id = context_id

    def append(self, token_ids: Sequence[int]) -> None:
        self._send(Append(self.context_id, tuple(token_ids)))

    def generate(self, options: GenerateOptions) -> ChunkStream:
        assert not self._is_free, "a freed context was used"
        error = self._error
        if error is None:
            return self._client.generate(self.context_id, options)
        stream = ChunkStream(self._client, self._client.next_id())
        stream.fail(error)
        return stream

    def fork(self, at: int | None = None) -> ClientContext:
        child = ClientContext(self._client, self._client.next_id(), self._epoch)
        self._send(Fork(self.context_id, child.context_id, at))
        return child

    def truncate(self, length: int) -> None:
        self._send(Truncate(self.context_id, length))

    def drop(self, start: int, stop: int) -> None:
        self._send(Drop(self.context_id, start, stop))

    def free(self) -> None:
        if not self._is_free:
            self._send(Free(self.context_id))
            self._is_free = True

    @property
    def _error(self) -> KeaError | None:
        """Why nothing can be done with the context any more."""
        if self._client.failure is not None:
            return self._client.failure
        if self._epoch != self._client.epoch:
            return EngineDied("The engine that held this context died.", hint="Send the request again.")
        return None

    def _send(self, command: Command) -> None:
        assert not self._is_free, "a freed context was used"
        if self._error is None:
            self._client.send(command)

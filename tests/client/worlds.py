"""Both ways to reach a service over a fake engine: embedded in this process, and a real server on a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TypeVar

from kea.client.connection import Connection, create_connection
from kea.client.loop import LoopThread
from kea.client.session import Session
from kea.service import NativeFunction, Service, ServiceConfig
from tests.fakes.engine import FakeEngine
from tests.server.support import ChatTokenizer, serving

T = TypeVar("T")


class World:
    """A connection to a service over `engine`, which lives on `loop`."""

    def __init__(self, connection: Connection, engine: FakeEngine, loop: LoopThread) -> None:
        self.connection = connection
        self.engine = engine
        self.loop = loop

    def session(self, name: str = "") -> Session:
        return self.connection.session(name)

    def on_loop(self, action: Callable[[], T]) -> T:
        """Do something to the engine where it lives."""

        async def act() -> T:
            return action()

        return self.loop.run(act())


def shout(prompt: str, options: object) -> str:
    return prompt.upper()


def create_engine() -> FakeEngine:
    return FakeEngine(shout, tokenizer=ChatTokenizer(), max_model_len=50_000)


def upper_native(text: str, suffix: str = "") -> str:
    return text.upper() + suffix


def halves(text: str) -> dict[str, str]:
    middle = len(text) // 2
    return {"left": text[:middle], "right": text[middle:]}


def kind(value: object) -> str:
    return type(value).__name__


FUNCTIONS: dict[str, NativeFunction] = {"upper": upper_native, "halves": halves, "kind": kind}


@contextmanager
def embedded_world() -> Iterator[World]:
    engine = create_engine()

    @asynccontextmanager
    async def create_service() -> AsyncIterator[Service]:
        config = ServiceConfig(retry_delay_s=0.0)
        async with Service([engine], engine.tokenizer, config=config, functions=FUNCTIONS) as service:
            yield service
            engine.release()

    with create_connection(service=create_service) as connection:
        yield World(connection, engine, connection.loop)
    assert not engine.contexts


@contextmanager
def http_world() -> Iterator[World]:
    engine = create_engine()
    loop, stack = LoopThread("server"), AsyncExitStack()
    try:
        server = loop.run(stack.enter_async_context(serving(engine, tokenizer=ChatTokenizer(), functions=FUNCTIONS)))
        try:
            with create_connection(server.url) as connection:
                yield World(connection, engine, loop)
        finally:
            loop.run(stack.aclose())
    finally:
        loop.stop()


WORLDS = {"embedded": embedded_world, "http": http_world}

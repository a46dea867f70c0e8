"""Where engines live: on a thread of this process or in a worker process. `start_engine` is the factory."""

from __future__ import annotations

from typing import Literal

from kea.cluster.base import Channel, Died, Loading, Message, Ready
from kea.cluster.client import EngineClient, OnLoading
from kea.cluster.process import ProcessChannel
from kea.cluster.thread import ThreadChannel
from kea.engine.config import EngineConfig

__all__ = [
    "Channel",
    "Died",
    "EngineClient",
    "Loading",
    "Message",
    "ProcessChannel",
    "Ready",
    "ThreadChannel",
    "start_engine",
]

Place = Literal["thread", "process"]


async def start_engine(
    config: EngineConfig, place: Place = "process", on_loading: OnLoading | None = None
) -> EngineClient:
    """Start an engine and wait until its model is loaded. Raises what prevented it (`ModelLoadFailed`, ...)."""
    channel: Channel = ThreadChannel(config) if place == "thread" else ProcessChannel(config)
    return await EngineClient.start(channel, on_loading)

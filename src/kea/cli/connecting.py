"""Connections of the commands that run something: to a server, or to an engine in this process with its loading shown.

Knows no programs. The engine's settings come as `EngineConfig`, checked before anything is started.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kea.cli.console import LoadingView
from kea.cli.options import EngineOptions, Where
from kea.cli.target import check_machine, choose_model
from kea.client.embedded import EmbeddedTransport
from kea.client.http import HttpTransport
from kea.engine.config import EngineConfig
from kea.errors import InvalidRequest

if TYPE_CHECKING:
    from kea.client.transport import Transport
    from kea.service import Service


@dataclass(frozen=True, slots=True)
class Target:
    """Where calls run: at a server, or else in this process (`model`, None is the embedded one)."""

    model: str | None = None
    where: Where = field(default_factory=Where)
    engine: EngineOptions = field(default_factory=EngineOptions)

    def __post_init__(self) -> None:
        if self.where.url is not None and self.model is not None:
            raise InvalidRequest(
                "A model and --url are both given; the server at that address has its own model.", param="url"
            )

    @property
    def is_embedded(self) -> bool:
        """Whether the embedded model is asked."""
        return self.where.url is None and self.model is None


def create_transport(target: Target) -> Transport:
    """Return the transport to a target; nothing is started yet. Raises what is wrong with the settings."""
    where, engine = target.where, target.engine
    if where.url is not None:
        return HttpTransport(where.url, where.api_key)
    source = choose_model(target.model)
    config = EngineConfig(
        model=source.location,
        dtype=engine.dtype,
        device=engine.device,
        kv_memory_bytes=engine.kv_memory,
        max_model_len=engine.max_model_len,
        num_threads=engine.num_threads,
        quantize=engine.quantize,
        kv_cache_dtype=engine.kv_cache_dtype,
    )
    check_machine(config)
    return EmbeddedTransport(lambda: _local_service(config, source.name))


async def name_model(target: Target, transport: Transport) -> str:
    """Return the name of the model that a target's calls run on; a server is asked for it."""
    if isinstance(transport, HttpTransport):
        return await transport.name_model()
    return choose_model(target.model).name


@asynccontextmanager
async def _local_service(config: EngineConfig, name: str) -> AsyncIterator[Service]:
    """Load a model into this process, showing its progress, and open a service over it."""
    from kea.cluster import start_engine
    from kea.cluster.abandoned import call_on_thread
    from kea.engine.checking import check_engine
    from kea.models import Tokenizer, user_notes
    from kea.service import Service

    with LoadingView(f"Loading {name}") as view:
        await call_on_thread(lambda: check_engine(config))
        tokenizer = await call_on_thread(lambda: Tokenizer.load(config.model, notes=user_notes()))
        engine = await start_engine(config, "thread", view.show)
    try:
        async with Service([engine], tokenizer) as service:
            yield service
    finally:
        await engine.close()

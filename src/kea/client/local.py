"""The service of `kea.connect()` without an address: an engine on a thread of this process. Imports torch when used."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from kea.service import NativeFunction, Service, ServiceConfig


@asynccontextmanager
async def embedded_service(
    *,
    model: str | None = None,
    config: ServiceConfig | None = None,
    functions: Mapping[str, NativeFunction] | None = None,
    **engine: Any,
) -> AsyncIterator[Service]:
    """Load a model into this process and open a service over it; both end with the context.

    `functions`: native functions by name. `engine`: fields of `EngineConfig`.
    """
    from kea.cluster import start_engine
    from kea.cluster.abandoned import call_on_thread
    from kea.engine.config import EngineConfig
    from kea.models import Tokenizer, require_embedded_model, user_notes

    source = model or str(require_embedded_model())
    tokenizer = await call_on_thread(
        lambda: Tokenizer.load(source, revision=engine.get("revision"), notes=user_notes())
    )
    started = await start_engine(EngineConfig(model=source, **engine), place="thread")
    try:
        config = config or ServiceConfig(idle_s=math.inf)  # the sessions are this process's own
        async with Service([started], tokenizer, config=config, functions=functions) as service:
            yield service
    finally:
        await started.close()

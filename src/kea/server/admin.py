"""Endpoints about the server itself: health, version, metrics, the OpenAPI document."""

from __future__ import annotations

import asyncio
import json
from importlib.metadata import version

from starlette.responses import Response
from starlette.types import ASGIApp

from kea.engine.base import Snapshot
from kea.errors import EngineDied, KeaError
from kea.server.endpoint import Call
from kea.server.metrics import CONTENT_TYPE
from kea.server.wire.models import HealthReply, VersionReply
from kea.service import ServiceSnapshot

PACKAGE = "kea-serve"
SNAPSHOT_TIMEOUT_S = 2.0


async def get_health(call: Call) -> ASGIApp:
    """Answer 200 while requests are taken and the engine lives, however long a step of it takes.

    Raises `ServiceClosing` or `EngineDied` (503).
    """
    call.state.lifecycle.check_open()
    if not call.state.model.engine.is_alive:
        raise EngineDied("The engine is gone; it is started again unless it died too often.")
    return HealthReply(status="ok").to_response()


async def get_version(_call: Call) -> ASGIApp:
    """Answer with the version of the package."""
    return VersionReply(version=version(PACKAGE)).to_response()


async def get_metrics(call: Call) -> ASGIApp:
    """Answer with the exposition of all metrics."""
    content = call.state.metrics.expose(await _try_snapshot(call), _service_snapshot(call))
    return Response(content, 200, media_type=CONTENT_TYPE)


async def get_openapi(call: Call) -> ASGIApp:
    """Answer with the OpenAPI document of the endpoints that are on."""
    return Response(json.dumps(call.state.openapi()), 200, media_type="application/json")


def _service_snapshot(call: Call) -> ServiceSnapshot | None:
    return None if call.state.programs is None else call.state.programs.snapshot()


async def _try_snapshot(call: Call) -> Snapshot | None:
    """Return the engine's snapshot: the one before while a step takes long, None while the engine is gone."""
    engine = call.state.model.engine
    try:
        async with asyncio.timeout(SNAPSHOT_TIMEOUT_S):
            return await engine.snapshot()
    except KeaError:
        return None
    except TimeoutError:
        return call.state.metrics.last_snapshot if engine.is_alive else None

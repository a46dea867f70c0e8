"""What all endpoints share while the server lives. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from kea.server.auth import Authenticator
from kea.server.config import ServerConfig
from kea.server.generation import Runner
from kea.server.lifecycle import Lifecycle
from kea.server.limits import Slots
from kea.server.metrics import Metrics
from kea.server.openai.response_store import ResponseStore
from kea.server.served import ServedModel
from kea.service import Service, Session


@dataclass(frozen=True, slots=True)
class AppState:
    """Made by `create_app`, one per application; whoever made engine and service closes them."""

    config: ServerConfig
    model: ServedModel
    auth: Authenticator
    slots: Slots
    lifecycle: Lifecycle
    metrics: Metrics
    runner: Runner
    openapi: Callable[[], dict[str, Any]]
    responses: ResponseStore
    programs: Service | None
    next_order: Callable[[], float]
    parrot_sessions: WeakValueDictionary[int, Session]

    @property
    def service(self) -> Service:
        """The service; its endpoints are on only where there is one."""
        assert self.programs is not None, "an endpoint for programs is on without a service"
        return self.programs

    async def drain(self) -> None:
        """Let running requests end within the grace, and end the others with an answer."""
        await self.lifecycle.drain(self.config.shutdown_grace_s)

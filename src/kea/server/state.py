"""What all endpoints share while the server lives. Knows no HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kea.server.auth import Authenticator
from kea.server.config import ServerConfig
from kea.server.generation import Runner
from kea.server.lifecycle import Lifecycle
from kea.server.limits import Slots
from kea.server.metrics import Metrics
from kea.server.served import ServedModel


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
    openapi: dict[str, Any]

    async def drain(self) -> None:
        """Let running requests end within the grace, and end the others with an answer."""
        await self.lifecycle.drain(self.config.shutdown_grace_s)

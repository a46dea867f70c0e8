"""POST /v1/embeddings: not served yet, and said so by name."""

from __future__ import annotations

from starlette.types import ASGIApp

from kea.errors import NotFound
from kea.server.endpoint import Call


async def refuse_embeddings(call: Call) -> ASGIApp:
    """Refuse with a clear error."""
    raise NotFound(
        f"/v1/embeddings is not offered: {call.state.model.name!r} is a decoder, and this server serves no encoder.",
        hint="Use an embedding server.",
        param="model",
    )

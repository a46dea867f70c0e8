"""GET /v1/models: what is served, in one object for OpenAI's clients (`data`) and Parrot's (`models`)."""

from __future__ import annotations

from starlette.types import ASGIApp

from kea.server.endpoint import Call
from kea.server.served import ServedModel
from kea.server.wire.models import ModelReply, ModelsReply


async def list_models(call: Call) -> ASGIApp:
    """Answer with all names of the model."""
    model = call.state.model
    replies = [_reply(model, name) for name in model.names]
    return ModelsReply(object="list", data=replies, models=list(model.names)).to_response()


async def get_model(call: Call) -> ASGIApp:
    """Answer with one of them."""
    name = call.path_params["model"]
    call.state.model.check_name(name)
    return _reply(call.state.model, name).to_response()


def _reply(model: ServedModel, name: str) -> ModelReply:
    return ModelReply(
        id=name,
        object="model",
        created=model.created_s,
        owned_by="kea",
        root=model.engine.info.model,
        parent=None,
        max_model_len=model.max_model_len,
    )

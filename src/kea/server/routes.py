"""The table of endpoints: every path, what it takes and gives, and who may call it."""

from __future__ import annotations

from kea.server import admin
from kea.server.config import ServerConfig
from kea.server.endpoint import Access, Endpoint
from kea.server.metrics import CONTENT_TYPE
from kea.server.openai import embeddings, models, tokens
from kea.server.openai.chat import create_chat_completion
from kea.server.openai.completions import create_completion
from kea.server.wire.base import Body
from kea.server.wire.chat import ChatBody
from kea.server.wire.chat_reply import ChatReply
from kea.server.wire.completions import CompletionBody, CompletionReply
from kea.server.wire.models import (
    DetokenizeBody,
    DetokenizeReply,
    HealthReply,
    ModelReply,
    ModelsReply,
    TokenizeBody,
    TokenizeReply,
    VersionReply,
)

OPENAI = (
    Endpoint("GET", "/v1/models", models.list_models, "List the models.", reply=ModelsReply),
    Endpoint("GET", "/v1/models/{model:path}", models.get_model, "Describe one model.", reply=ModelReply),
    Endpoint(
        "POST",
        "/v1/completions",
        create_completion,
        "Continue a prompt.",
        body=CompletionBody,
        reply=CompletionReply,
        waits=True,
        streams=True,
    ),
    Endpoint(
        "POST",
        "/v1/chat/completions",
        create_chat_completion,
        "Continue a conversation.",
        body=ChatBody,
        reply=ChatReply,
        waits=True,
        streams=True,
    ),
    Endpoint("POST", "/v1/embeddings", embeddings.refuse_embeddings, "Not offered yet: always refused.", body=Body),
    Endpoint("POST", "/tokenize", tokens.tokenize, "Turn text into token ids.", body=TokenizeBody, reply=TokenizeReply),
    Endpoint(
        "POST",
        "/detokenize",
        tokens.detokenize,
        "Turn token ids into text.",
        body=DetokenizeBody,
        reply=DetokenizeReply,
    ),
)
ADMIN = (
    Endpoint(
        "GET", "/health", admin.get_health, "Say whether requests are served.", reply=HealthReply, access=Access.OPEN
    ),
    Endpoint("GET", "/version", admin.get_version, "Tell the version.", reply=VersionReply, access=Access.OPEN),
    Endpoint(
        "GET",
        "/metrics",
        admin.get_metrics,
        "Show the metrics in Prometheus' form.",
        access=Access.OPEN,
        reply_type=CONTENT_TYPE,
    ),
    Endpoint("GET", "/openapi.json", admin.get_openapi, "This document.", access=Access.OPEN),
)


def choose_endpoints(config: ServerConfig) -> tuple[Endpoint, ...]:
    """Return the endpoints that are on."""
    return (*OPENAI, *ADMIN)

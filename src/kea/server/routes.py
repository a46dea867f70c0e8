"""The table of endpoints: every path, what it takes and gives, and who may call it."""

from __future__ import annotations

from functools import partial

from kea.server import admin
from kea.server.config import ServerConfig
from kea.server.endpoint import Access, Endpoint
from kea.server.errors import Dialect
from kea.server.metrics import CONTENT_TYPE
from kea.server.openai import embeddings, models, responses, tokens
from kea.server.openai.chat import create_chat_completion
from kea.server.openai.completions import create_completion
from kea.server.programs import parrot, sessions
from kea.server.sse import EVENT_STREAM
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
from kea.server.wire.parrot import (
    CallReply,
    ContentReply,
    GetVariableBody,
    NativeCallBody,
    NewVariableBody,
    NewVariableReply,
    OpenSessionBody,
    OpenSessionReply,
    ParrotBody,
    SemanticCallBody,
    SessionAuthBody,
    SetVariableBody,
    VariablesReply,
)
from kea.server.wire.responses import ResponseBody
from kea.server.wire.responses_reply import DeletedReply, ResponseReply
from kea.server.wire.sessions import (
    CancelBody,
    CancelReply,
    EmptyReply,
    ProgramBody,
    ReadBody,
    SessionBody,
    SessionReply,
    ValueBody,
    VariableReply,
)

_own = partial(Endpoint, dialect=Dialect.KEA)
_parrot = partial(Endpoint, dialect=Dialect.PARROT, access=Access.SESSION)

RESPONSE = "/v1/responses/{response_id}"
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
    Endpoint(
        "POST",
        "/v1/responses",
        responses.create_response,
        "Answer a conversation with items.",
        body=ResponseBody,
        reply=ResponseReply,
        waits=True,
        streams=True,
    ),
    Endpoint(
        "GET",
        RESPONSE,
        responses.get_response,
        "Tell a stored response.",
        reply=ResponseReply,
        waits=True,
        streams=True,
        query=("stream", "starting_after"),
    ),
    Endpoint("DELETE", RESPONSE, responses.delete_response, "Forget a stored response.", reply=DeletedReply),
    Endpoint(
        "POST",
        RESPONSE + "/cancel",
        responses.cancel_response,
        "End a response.",
        reply=ResponseReply,
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
SESSION = "/v1/sessions/{session_id}"
VARIABLE = SESSION + "/variables/{variable_id}"
SESSIONS = (
    _own("POST", "/v1/sessions", sessions.create_session, "Open a session.", SessionBody, SessionReply, status=201),
    _own("GET", SESSION, sessions.get_session, "Tell a session's state and timeline."),
    _own("DELETE", SESSION, sessions.delete_session, "Close a session.", reply=EmptyReply),
    _own("POST", SESSION + "/renew", sessions.renew_session, "Say that the client is still there.", reply=EmptyReply),
    _own("POST", SESSION + "/calls", sessions.submit_program, "Submit a program.", ProgramBody, EmptyReply, status=202),
    _own(
        "POST",
        SESSION + "/read",
        sessions.read_variables,
        "Wait for many variables.",
        body=ReadBody,
        waits=True,
        reply_type=EVENT_STREAM,
    ),
    _own("POST", SESSION + "/cancel", sessions.cancel_calls, "Cancel calls.", CancelBody, CancelReply),
    _own("PUT", VARIABLE, sessions.set_variable, "Set a variable.", ValueBody, EmptyReply),
    _own("POST", VARIABLE, sessions.set_variable, "Set a variable.", ValueBody, EmptyReply),
    _own(
        "GET",
        VARIABLE,
        sessions.get_variable,
        "Wait for a variable.",
        reply=VariableReply,
        waits=True,
        query=("criteria", "deadline_s"),
    ),
    _own(
        "GET",
        VARIABLE + "/stream",
        sessions.stream_variable,
        "Read a variable as it is written.",
        waits=True,
        query=("criteria",),
        reply_type=EVENT_STREAM,
    ),
)
PARROT_SESSION = "/v1/session/{session_id}"
PARROT_VARIABLE = "/v1/semantic_var/{variable_id}"
PARROT = (
    _parrot("POST", "/v1/session", parrot.open_parrot_session, "Open a session.", OpenSessionBody, OpenSessionReply),
    _parrot("GET", PARROT_SESSION, parrot.get_parrot_session, "Tell a session's state.", SessionAuthBody),
    _parrot("DELETE", PARROT_SESSION, parrot.close_parrot_session, "Close a session.", SessionAuthBody, EmptyReply),
    _parrot("POST", "/v1/semantic_call", parrot.submit_semantic_call, "Submit a call.", SemanticCallBody, CallReply),
    _parrot(
        "POST", "/v1/py_native_call", parrot.submit_native_call, "Submit a native call.", NativeCallBody, CallReply
    ),
    _parrot(
        "POST",
        "/v1/submit_py_native_call",
        parrot.submit_native_call,
        "Submit a native call.",
        NativeCallBody,
        CallReply,
    ),
    _parrot(
        "POST",
        "/v1/semantic_var",
        parrot.create_parrot_variable,
        "Make a variable.",
        NewVariableBody,
        NewVariableReply,
    ),
    _parrot("GET", "/v1/semantic_var", parrot.list_parrot_variables, "List variables.", ParrotBody, VariablesReply),
    _parrot("POST", PARROT_VARIABLE, parrot.set_parrot_variable, "Set a variable.", SetVariableBody, EmptyReply),
    _parrot(
        "GET",
        PARROT_VARIABLE,
        parrot.get_parrot_variable,
        "Wait for a variable.",
        GetVariableBody,
        ContentReply,
        waits=True,
    ),
)
ADMIN = (
    Endpoint(
        "GET", "/health", admin.get_health, "Say whether requests are served.", reply=HealthReply, access=Access.OPEN
    ),
    Endpoint("GET", "/ping", admin.get_health, "The same as /health.", reply=HealthReply, access=Access.OPEN),
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


def choose_endpoints(config: ServerConfig, *, with_programs: bool) -> tuple[Endpoint, ...]:
    """Return the endpoints that are on."""
    programs = SESSIONS if with_programs else ()
    parrot = PARROT if with_programs and config.parrot_routes else ()
    return (*OPENAI, *programs, *parrot, *ADMIN)

"""The ASGI application: the table of endpoints behind request ids and error answers. Knows no endpoint's content."""

from __future__ import annotations

import itertools
import re
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from weakref import WeakValueDictionary

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kea.engine.base import Engine
from kea.errors import InvalidRequest, KeaError, NotFound
from kea.server.admin import PACKAGE
from kea.server.auth import Authenticator
from kea.server.browsers import browser_rules
from kea.server.config import ServerConfig
from kea.server.endpoint import REQUEST_ID_KEY, STATE_KEY, Endpoint, EndpointApp, header_of
from kea.server.errors import as_kea_error, error_response
from kea.server.generation import Runner
from kea.server.lifecycle import Lifecycle
from kea.server.limits import Slots
from kea.server.metrics import Metrics
from kea.server.openai.response_store import ResponseStore
from kea.server.openapi import create_document
from kea.server.parsers import choose_format
from kea.server.parsers.probe import TemplateFacts, probe_template
from kea.server.routes import choose_endpoints
from kea.server.served import ServedModel, Tokenizer
from kea.server.state import AppState
from kea.service import Service

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

WHERE_THINGS_ARE = "The models are listed at /v1/models, all that can be asked at /openapi.json."


def create_app(
    config: ServerConfig,
    engine: Engine,
    tokenizer: Tokenizer,
    service: Service | None = None,
    next_order: Callable[[], float] | None = None,
) -> Starlette:
    """Build the application over an engine, its tokenizer and the service, which stay their maker's to close.

    Without a service there are no endpoints for programs. `next_order` gives each single request its place among the
    applications that the engine serves (None: they are counted here). `app.state.kea` is the `AppState`.
    """
    endpoints = choose_endpoints(config, with_programs=service is not None)
    model = _serve_model(config, engine, tokenizer)
    metrics = Metrics(model.name)
    if service is not None:
        service.measure(metrics.programs)
    state = AppState(
        config=config,
        model=model,
        auth=Authenticator(config.api_keys),
        slots=Slots(config.limits.max_requests_per_key),
        lifecycle=Lifecycle(),
        metrics=metrics,
        runner=Runner(engine, metrics),
        openapi=cache(partial(create_document, endpoints, version(PACKAGE))),
        responses=ResponseStore(config.limits.max_stored_responses, config.limits.stored_response_s),
        programs=service,
        next_order=next_order or partial(next, itertools.count(1)),
        parrot_sessions=WeakValueDictionary(),
    )
    app = Starlette(
        routes=_routes(endpoints),
        middleware=[*browser_rules(config), Middleware(RequestIds, state=state)],
        exception_handlers={HTTPException: _answer_http_error, Exception: _answer_error},
    )
    app.router.redirect_slashes = False
    app.state.kea = state
    return app


def _serve_model(config: ServerConfig, engine: Engine, tokenizer: Tokenizer) -> ServedModel:
    facts = probe_template(tokenizer.render_chat) if tokenizer.has_chat_template else TemplateFacts()
    output_format = choose_format(config.tool_call_parser, config.reasoning_parser, facts.written)
    marks = output_format.marks(with_tools=True)
    return ServedModel(
        names=config.model_names or (engine.info.model,),
        engine=engine,
        tokenizer=tokenizer,
        created_s=int(time.time()),
        output_format=replace(output_format, hidden=frozenset(mark for mark in marks if _is_hidden(tokenizer, mark))),
        reads=facts.reads,
    )


def _is_hidden(tokenizer: Tokenizer, mark: str) -> bool:
    return mark not in tokenizer.decode(tokenizer.encode(mark, special=False), skip_special=True)


def _routes(endpoints: Iterable[Endpoint]) -> list[Route]:
    by_path: dict[str, dict[str, ASGIApp]] = {}
    for endpoint in endpoints:
        by_path.setdefault(endpoint.path, {})[endpoint.method] = EndpointApp(endpoint)
    return [Route(path, PathApp(methods)) for path, methods in by_path.items()]


class PathApp:
    """One path: passes a request to its method's endpoint, or says which methods there are."""

    def __init__(self, methods: dict[str, ASGIApp]) -> None:
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        app = self._methods.get(method)
        if app is None:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(self._methods))})
        await app(scope, receive, send)


class RequestIds:
    """Gives every request its state and an id, and sends the id (and the caller's trace) back."""

    def __init__(self, app: ASGIApp, state: AppState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header_of(scope, "x-request-id")
        request_id = given if given is not None and REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope[STATE_KEY], scope[REQUEST_ID_KEY] = self._state, request_id
        headers = [(b"x-request-id", request_id.encode())]
        trace = header_of(scope, "traceparent")
        if trace is not None and TRACEPARENT.fullmatch(trace):
            headers.append((b"traceparent", trace.encode()))
        await self._app(scope, receive, partial(_send_with, send, headers))


async def _send_with(send: Send, headers: list[tuple[bytes, bytes]], message: Message) -> None:
    if message["type"] == "http.response.start":
        message["headers"] = [*message["headers"], *headers]
    await send(message)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Answer for requests that reach no endpoint."""
    assert isinstance(error, HTTPException), "registered for this class"
    path = request.url.path[:200]
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        refusal: KeaError = InvalidRequest(
            f"{path} does not take {request.method[:20]}; allowed: {allowed}.", param="method"
        )
        response = error_response(refusal, headers=error.headers)
        response.status_code = 405
        return response
    return error_response(NotFound(f"There is nothing at {path!r}.", hint=WHERE_THINGS_ARE, param="path"))


async def _answer_error(_request: Request, error: Exception) -> Response:
    return error_response(as_kea_error(error))

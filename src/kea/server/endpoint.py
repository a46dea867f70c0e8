"""One endpoint: from an HTTP request to its answer. Owns the order of the checks that every request meets: stage of the
server, key, concurrency, size, body; and the ways out: answered, client gone, server ending, error. Knows no endpoint's
content.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kea.errors import InvalidRequest, ServiceClosing
from kea.server.auth import OPEN_TENANT
from kea.server.errors import Dialect, as_kea_error, error_response
from kea.server.generation import Runner, Tally
from kea.server.lifeline import Lifeline
from kea.server.limits import read_body
from kea.server.sse import LIFELINE_KEY
from kea.server.wire.base import JSON_TYPE, Body, Reply, parse_body

if TYPE_CHECKING:
    from kea.server.state import AppState

logger = logging.getLogger(__name__)

STATE_KEY = "kea.state"
REQUEST_ID_KEY = "kea.request_id"
IGNORED_HEADER = b"x-kea-ignored-fields"
FIELD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MAX_IGNORED = 16


class Access(Enum):
    """Who may call. OPEN: everyone. KEY: holders of an API key. SESSION: the handler checks a session's capability."""

    OPEN = "open"
    KEY = "key"
    SESSION = "session"


@dataclass(frozen=True, slots=True)
class Call:
    """A request that passed the checks. `body` is of the endpoint's body class (an empty `Body` without one).

    `runner` counts the request's tokens.
    """

    state: AppState
    scope: Scope
    tenant: str
    request_id: str
    body: Any
    runner: Runner

    @property
    def path_params(self) -> Mapping[str, str]:
        return self.scope["path_params"]  # type: ignore[no-any-return]

    @property
    def query(self) -> str:
        return self.scope["query_string"].decode("latin-1")  # type: ignore[no-any-return]

    def header(self, name: str) -> str | None:
        return header_of(self.scope, name)


Handler = Callable[[Call], Awaitable[ASGIApp]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A row of the table of endpoints: how it is reached, what it takes and gives, who may call it.

    `waits`: it waits for the engine, so it takes one of its key's slots and ends when its client is gone.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    body: type[Body] | None = None
    reply: type[Reply] | None = None
    access: Access = Access.KEY
    dialect: Dialect = Dialect.OPENAI
    waits: bool = False
    streams: bool = False
    query: tuple[str, ...] = ()
    status: int = 200
    reply_type: str = JSON_TYPE


class EndpointApp:
    """The ASGI application of one endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gate, began_s = SendGate(send), time.monotonic()
        try:
            await self._serve(scope, receive, gate)
        except ClientDisconnect:
            gate.ending = "its client left"
        except Exception as error:
            if not gate.is_started:
                await self._answer_error(error, scope, receive, gate)
            elif isinstance(error, ServiceClosing):
                gate.ending = "cut by the server's end"  # a stream has said so in its last event
            else:
                raise
        finally:
            self._log(scope, gate, time.monotonic() - began_s)

    async def _answer_error(self, error: Exception, scope: Scope, receive: Receive, gate: SendGate) -> None:
        kea_error = as_kea_error(error)
        if kea_error is not error:
            logger.error("request %s failed", scope.get(REQUEST_ID_KEY), exc_info=error)
        await error_response(kea_error, self._endpoint.dialect)(scope, receive, gate)

    def _log(self, scope: Scope, gate: SendGate, seconds: float) -> None:
        """Tell how a request ended: the path by its pattern, so that nothing of the caller's stands in the log."""
        method, path, tally = self._endpoint.method, self._endpoint.path, gate.tally
        model = scope[STATE_KEY].model.name
        tokens = f"{tally.prompt_tokens} + {tally.output_tokens} tokens of {model}, " if tally.prompt_tokens else ""
        client = "{}:{}".format(*scope["client"]) if scope.get("client") else "?"
        ending = f"{gate.ending} in {seconds:.3f} s, {tokens}client {client}"
        logger.info("%s %s: %s, request %s", method, path, ending, scope.get(REQUEST_ID_KEY))

    async def _serve(self, scope: Scope, receive: Receive, send: SendGate) -> None:
        state: AppState = scope[STATE_KEY]
        if self._endpoint.access is not Access.OPEN:
            state.lifecycle.check_open()
        tenant = self._tenant(state, scope)
        async with Lifeline(state.lifecycle) as lifeline:
            with state.slots.hold(tenant) if self._endpoint.waits else nullcontext():
                raw = await read_body(scope, receive, state.config.limits.max_body_bytes)
                if self._endpoint.waits:
                    lifeline.watch(receive)
                runner = state.runner.counting(send.tally)
                call = Call(state, scope, tenant, scope[REQUEST_ID_KEY], self._parse(scope, raw), runner)
                self._tell_ignored(call, send)
                scope[LIFELINE_KEY] = lifeline
                response = await self._endpoint.handler(call)
                await response(scope, receive, send)

    def _tenant(self, state: AppState, scope: Scope) -> str:
        if self._endpoint.access is Access.KEY:
            return state.auth.tenant_of_header(header_of(scope, "authorization"))
        return OPEN_TENANT

    def _tell_ignored(self, call: Call, send: SendGate) -> None:
        """Name in a header, and in the log, the fields that mean nothing here; Parrot's client sends some always."""
        ignored = () if self._endpoint.dialect is Dialect.PARROT else call.body.unknown_fields()
        if ignored:
            names = ", ".join(name if FIELD_NAME.fullmatch(name) else "?" for name in ignored[:MAX_IGNORED])
            send.headers.append((IGNORED_HEADER, names.encode()))
            logger.info("%s ignores the fields %s of request %s", self._endpoint.path, names, call.request_id)

    def _parse(self, scope: Scope, raw: bytes) -> Body:
        if self._endpoint.body is None:
            return Body()
        content_type = (header_of(scope, "content-type") or "").partition(";")[0].strip().lower()
        if raw and content_type != JSON_TYPE:
            raise InvalidRequest(f"Content-Type is {content_type!r}; it must be {JSON_TYPE}.", param="Content-Type")
        return parse_body(self._endpoint.body, raw)


class SendGate:
    """Passes messages on, adds `headers` to the answer, remembers whether it has begun, how it ended, what it took."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_started = False
        self.headers: list[tuple[bytes, bytes]] = []
        self.ending = "no answer"
        self.tally = Tally()

    async def __call__(self, message: Message) -> None:
        self.is_started = True
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *self.headers]
            self.ending = str(message["status"])
        await self._send(message)


def header_of(scope: Scope, name: str) -> str | None:
    """Return the first value of a header, or None."""
    key = name.lower().encode()
    value = next((value for header, value in scope["headers"] if header == key), None)
    return None if value is None else value.decode("latin-1")

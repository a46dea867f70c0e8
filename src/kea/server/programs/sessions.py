"""Kea's own session routes, as docs/wire.md tells: every route below a session needs its secret."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from starlette.datastructures import QueryParams
from starlette.types import ASGIApp

from kea.errors import KeaError, PermissionDenied
from kea.program.events import StreamEvent
from kea.program.wire import program_from_json
from kea.server.endpoint import Call
from kea.server.programs.reading import criteria_of_query, parse_criteria, parse_deadline, parse_session_id
from kea.server.sse import EventStream, with_keep_alive
from kea.server.wire.base import json_response
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
from kea.service import Session, check_secret
from kea.types import Criteria

SECRET_HEADER = "x-kea-session-secret"


async def create_session(call: Call) -> ASGIApp:
    """Open a session of the caller's."""
    body: SessionBody = call.body
    lease_s = math.inf if body.detached else call.state.config.limits.session_lease_s
    identity = call.state.service.create_session(tenant=call.tenant, name=body.name, lease_s=lease_s).identity
    told_s = lease_s if math.isfinite(lease_s) else None
    return SessionReply(session_id=identity.id, session_secret=identity.secret, lease_s=told_s).to_response(201)


async def get_session(call: Call) -> ASGIApp:
    """Answer with the session's status and timeline."""
    return json_response(call.state.service.status(open_session(call)).to_json())


async def renew_session(call: Call) -> ASGIApp:
    """Say that the client is still there, as every other request does."""
    open_session(call)
    return EmptyReply().to_response()


async def delete_session(call: Call) -> ASGIApp:
    """Close the session."""
    call.state.service.close_session(open_session(call))
    return EmptyReply().to_response()


async def submit_program(call: Call) -> ASGIApp:
    """Accept a program whole, or refuse it whole."""
    session = open_session(call)
    body: ProgramBody = call.body
    call.state.service.submit(session, program_from_json(body.to_json()))
    return EmptyReply().to_response(202)


async def set_variable(call: Call) -> ASGIApp:
    """Set a variable that no call writes."""
    session = open_session(call)
    body: ValueBody = call.body
    call.state.service.set(session, call.path_params["variable_id"], body.value)
    return EmptyReply().to_response()


async def get_variable(call: Call) -> ASGIApp:
    """Answer once the variable is ready; with its error where it failed."""
    session = open_session(call)
    query = QueryParams(call.query)
    variable_id, deadline_s = call.path_params["variable_id"], parse_deadline(query.get("deadline_s"))
    value = await call.state.service.get(session, variable_id, criteria_of_query(query), deadline_s)
    return VariableReply(id=variable_id, state=session.variable(variable_id).state.value, value=value).to_response()


async def stream_variable(call: Call) -> ASGIApp:
    """Answer with the variable's text as it is written, from its beginning."""
    session = open_session(call)
    criteria = criteria_of_query(QueryParams(call.query))
    variable_id = session.variable(call.path_params["variable_id"]).id
    return EventStream(with_keep_alive(_pieces(call, session, variable_id, criteria)), b"", error_event)


async def read_variables(call: Call) -> ASGIApp:
    """Answer with each variable once it is ready or failed, in that order."""
    session = open_session(call)
    body: ReadBody = call.body
    criteria = parse_criteria(body.criteria)
    for variable_id in body.variables:
        session.variable(variable_id)
    return EventStream(with_keep_alive(_values(call, session, body.variables, criteria)), b"", error_event)


async def cancel_calls(call: Call) -> ASGIApp:
    """Cancel calls that have not ended."""
    session = open_session(call)
    body: CancelBody = call.body
    return CancelReply(cancelled=call.state.service.cancel(session, body.call_ids)).to_response()


def open_session(call: Call) -> Session:
    """Return the session of the path.

    Raises `NotFound` (also for another key's), `PermissionDenied` for a wrong secret.
    """
    session = call.state.service.session(parse_session_id(call.path_params["session_id"]), tenant=call.tenant)
    check_session_secret(session, call.header(SECRET_HEADER), "X-Kea-Session-Secret")
    return session


def check_session_secret(session: Session, secret: str | None, param: str) -> None:
    """Raise `PermissionDenied` unless the secret is the session's."""
    if secret is None:
        raise PermissionDenied(f"{param} is missing; it carries the session's secret.", param=param)
    check_secret(session, secret)


def error_event(error: KeaError) -> bytes:
    return StreamEvent("error", {"error": error.to_dict()}).encode()


async def _pieces(call: Call, session: Session, variable_id: str, criteria: Criteria | None) -> AsyncGenerator[bytes]:
    texts = call.state.service.stream(session, variable_id, criteria)
    async with aclosing(texts):
        async for text in texts:
            yield StreamEvent("piece", {"text": text}).encode()
    yield StreamEvent("done").encode()


async def _values(
    call: Call, session: Session, variable_ids: Sequence[str], criteria: Criteria | None
) -> AsyncGenerator[bytes]:
    async with aclosing(call.state.service.read_each(session, variable_ids, criteria)) as done:
        async for variable in done:
            if variable.error is None:
                yield StreamEvent("value", {"id": variable.id, "value": variable.value}).encode()
            else:
                yield StreamEvent("failure", {"id": variable.id, "error": variable.error.to_dict()}).encode()
    yield StreamEvent("done").encode()

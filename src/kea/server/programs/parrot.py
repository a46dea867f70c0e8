"""Parrot's original API over the same service: its client works unchanged. Source: the API of microsoft/ParrotServe.

The session's id, a random integer of 53 bits, is the capability for calls, which its client sends without more; reads
and writes of variables carry the session's secret. Only sessions opened here are reached here. Uploaded bytecode is
refused.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp

from kea.errors import AuthenticationFailed, InvalidRequest, NotFound, Unsupported
from kea.program.wire import program_from_json
from kea.server.endpoint import Call
from kea.server.programs.reading import parse_criteria, parse_session_id
from kea.server.programs.sessions import check_session_secret
from kea.server.wire.base import json_response, quote
from kea.server.wire.parrot import (
    CallReply,
    ContentReply,
    GetVariableBody,
    NativeCallBody,
    NewVariableBody,
    NewVariableReply,
    OpenSessionBody,
    OpenSessionReply,
    Parameter,
    ParameterInfo,
    ParrotBody,
    ParrotSampling,
    SemanticCallBody,
    SessionAuthBody,
    SetVariableBody,
    VariableInfo,
    VariablesReply,
)
from kea.server.wire.sessions import EmptyReply
from kea.service import Session
from kea.types import Criteria

REQUEST_ID_BITS = 53


async def open_parrot_session(call: Call) -> ASGIApp:
    """Open a session; with keys on, `api_key` is the key."""
    body: OpenSessionBody = call.body
    auth = call.state.auth
    if body.api_key is None and not auth.is_open:
        raise AuthenticationFailed("api_key is missing.", param="api_key")
    tenant = auth.tenant_of_key(body.api_key or "", param="api_key")
    session = call.state.service.create_session(tenant=tenant)
    call.state.parrot_sessions[session.identity.id] = session
    return OpenSessionReply(session_id=session.identity.id, session_auth=session.identity.secret).to_response()


async def get_parrot_session(call: Call) -> ASGIApp:
    """Answer with the session's status."""
    return json_response(call.state.service.status(_session_of_path(call)).to_json())


async def close_parrot_session(call: Call) -> ASGIApp:
    """Close the session."""
    call.state.service.close_session(_session_of_path(call))
    return EmptyReply().to_response()


async def submit_semantic_call(call: Call) -> ASGIApp:
    """Submit one call; every parameter gets a variable."""
    body: SemanticCallBody = call.body
    session = _session(call, body, needs_secret=False)
    for name in body.models or ():
        call.state.model.check_name(name)
    criteria = parse_criteria(body.output_criteria)
    parameters = _with_variables(body.parameters)
    described = {"template": body.template, "parameters": [_semantic_parameter(*pair) for pair in parameters]}
    return _submit(call, session, body.func_name, described, parameters=parameters, criteria=criteria)


async def submit_native_call(call: Call) -> ASGIApp:
    """Submit one call of a function that the operator registered."""
    body: NativeCallBody = call.body
    session = _session(call, body, needs_secret=False)
    if body.func_code is not None:
        raise Unsupported(
            "func_code: running uploaded bytecode is refused; it would give every client this machine.",
            hint="Use a transform of the output, a function that the operator registered under this name, or run the "
            "function in the client between two calls.",
            param="func_code",
        )
    criteria = parse_criteria(body.output_criteria)
    parameters = _with_variables(body.parameters)
    described = {"function": body.func_name, "parameters": [_native_parameter(*pair) for pair in parameters]}
    return _submit(call, session, body.func_name, described, parameters=parameters, criteria=criteria)


async def create_parrot_variable(call: Call) -> ASGIApp:
    """Make a variable that is set later, or written by a later call."""
    body: NewVariableBody = call.body
    session = _session(call, body)
    variable_id = _new_id()
    program = program_from_json({"variables": [{"id": variable_id, "name": body.var_name}]})
    call.state.service.submit(session, program)
    return NewVariableReply(var_id=variable_id).to_response()


async def set_parrot_variable(call: Call) -> ASGIApp:
    """Set a variable, once."""
    body: SetVariableBody = call.body
    call.state.service.set(_session(call, body), call.path_params["variable_id"], body.content)
    return EmptyReply().to_response()


async def get_parrot_variable(call: Call) -> ASGIApp:
    """Answer once the variable is ready."""
    body: GetVariableBody = call.body
    session = _session(call, body)
    criteria = parse_criteria(body.criteria)
    content = await call.state.service.get(session, call.path_params["variable_id"], criteria)
    return ContentReply(content=content).to_response()


async def list_parrot_variables(call: Call) -> ASGIApp:
    """Answer with all variables of a session."""
    session = _session(call, call.body)
    infos = [
        VariableInfo(var_id=variable.id, var_name=variable.name, state=variable.state.value)
        for variable in session.variables.values()
    ]
    return VariablesReply(vars=infos).to_response()


def _session(call: Call, body: ParrotBody, *, needs_secret: bool = True) -> Session:
    return _find(call, body.session_id, body.session_auth, needs_secret=needs_secret)


def _session_of_path(call: Call) -> Session:
    body: SessionAuthBody = call.body
    session_id = parse_session_id(call.path_params["session_id"])
    return _find(call, session_id, body.session_auth, needs_secret=True)


def _find(call: Call, session_id: int, secret: str | None, *, needs_secret: bool) -> Session:
    """Return an open session that was opened here; a secret is checked wherever one is given."""
    known = call.state.parrot_sessions.get(session_id)
    if known is None:
        raise NotFound(f"There is no session {session_id}.", param="session_id")
    session = call.state.service.session(session_id, tenant=known.tenant.name)
    if needs_secret or secret is not None:
        check_session_secret(session, secret, "session_auth")
    return session


def _submit(
    call: Call,
    session: Session,
    name: str,
    described: dict[str, Any],
    *,
    parameters: Sequence[tuple[Parameter, str]],
    criteria: Criteria | None,
) -> ASGIApp:
    """Submit a call with the variables of its plain inputs, and describe what became of its parameters."""
    request_id = secrets.randbits(REQUEST_ID_BITS)
    values = [
        {"id": variable_id, "name": item.name, "value": _text(item)}
        for item, variable_id in parameters
        if not item.is_output and item.var_id is None and "template" in described
    ]
    one = {"id": f"r{request_id}", "name": name, **described}
    call.state.service.submit(session, program_from_json({"variables": values, "calls": [one]}))
    if criteria is not None:
        for item, variable_id in parameters:
            if item.is_output:
                session.variable(variable_id).criteria.add(criteria)
    infos = [_describe(item, variable_id) for item, variable_id in parameters]
    return CallReply(request_id=request_id, session_id=session.identity.id, param_info=infos).to_response()


def _describe(parameter: Parameter, variable_id: str) -> ParameterInfo:
    return ParameterInfo(
        parameter_name=parameter.name,
        placeholder_name=parameter.name,
        is_output=parameter.is_output,
        var_name=parameter.name,
        var_id=variable_id,
        var_desc="",
        var_scope="",
    )


def _semantic_parameter(parameter: Parameter, variable_id: str) -> dict[str, Any]:
    if not parameter.is_output:
        return {"name": parameter.name, "variable": variable_id}
    return {"name": parameter.name, "output": {"variable": variable_id, **_settings(parameter.sampling_config)}}


def _native_parameter(parameter: Parameter, variable_id: str) -> dict[str, Any]:
    if parameter.is_output:
        return {"name": parameter.name, "output": {"variable": variable_id}}
    if parameter.var_id is not None:
        return {"name": parameter.name, "variable": variable_id}
    return {"name": parameter.name, "value": parameter.value}


def _settings(config: ParrotSampling | None) -> dict[str, Any]:
    """Return an output's settings in Kea's words. Raises `Unsupported` for what would ask for several outputs."""
    config = config or ParrotSampling()
    for name, neutral in (("n", 1), ("best_of", 1), ("length_penalty", 0.0)):
        value = getattr(config, name)
        if value != neutral:
            raise Unsupported(f"sampling_config.{name} is {value!r}; only {neutral} is supported.", param=name)
    return {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_gen_length,
        "clamp": True,
        "ignore_eos": config.ignore_tokenizer_eos,
        "stop_token_ids": config.stop_token_ids or [],
        "stop": config.stop_str or [],
        "presence_penalty": config.presence_penalty,
        "frequency_penalty": config.frequency_penalty,
        "logit_bias": config.logit_bias or {},
        "repetition_penalty": config.repetition_penalty or 1.0,
    }


def _text(parameter: Parameter) -> str:
    if isinstance(parameter.value, str):
        return parameter.value
    raise InvalidRequest(
        f"The value of the input {parameter.name!r} is {quote(parameter.value)}; it must be a string.", param="value"
    )


def _with_variables(parameters: Sequence[Parameter]) -> list[tuple[Parameter, str]]:
    """Pair every parameter with its variable: the one it names, or a new one."""
    return [(item, _new_id() if item.var_id is None else item.var_id) for item in parameters]


def _new_id() -> str:
    return f"v{uuid.uuid4().hex}"

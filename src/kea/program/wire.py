"""The JSON form of programs, read strictly and written. Knows nothing but the values of `call`; see docs/wire.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kea.errors import InvalidRequest, KeaError, TemplateError
from kea.program.call import (
    ID_PATTERN,
    AnyCall,
    CallSpec,
    InputParameter,
    NativeCallSpec,
    NativeInput,
    NativeOutput,
    OutputParameter,
    Part,
    Program,
    VariableRef,
    VariableSpec,
)
from kea.program.fields import Fields, check_unicode
from kea.program.output import output_settings, parse_output
from kea.program.template import Message


def program_to_json(program: Program) -> dict[str, Any]:
    """Return the JSON form that `program_from_json` reads back to an equal value."""
    return {
        "calls": [call_to_json(call) for call in program.calls],
        "variables": [_variable_to_json(variable) for variable in program.variables],
    }


def call_to_json(call: AnyCall) -> dict[str, Any]:
    """Return the JSON form of one call."""
    body: dict[str, Any] = {"id": call.id, "name": call.name}
    if call.priority:
        body["priority"] = call.priority
    if isinstance(call, NativeCallSpec):
        return body | {"function": call.function, "parameters": _native_parameters(call)}
    if call.messages is None:
        body["template"] = call.template
    else:
        body["messages"] = [{"role": item.role, "content": item.template} for item in call.messages]
    return body | {"parameters": [*map(_input_json, call.inputs), *map(_output_json, call.outputs)]}


def program_from_json(data: object) -> Program:
    """Read a program. Raises `InvalidRequest` or `TemplateError` with the path of the key that is wrong."""
    fields = Fields(data, "program")
    calls = tuple(call_from_json(item, f"calls[{idx}]") for idx, item in enumerate(fields.items("calls", ())))
    variables = tuple(
        _variable_from_json(item, f"variables[{idx}]") for idx, item in enumerate(fields.items("variables", ()))
    )
    fields.finish()
    return Program(calls, variables)


def call_from_json(data: object, where: str = "call") -> AnyCall:
    """Read one call; one with a `function` is native."""
    fields = Fields(data, where)
    try:
        call = _native_call(fields) if "function" in fields else _semantic_call(fields)
    except KeaError as error:
        if error.param is None or not error.param.startswith(where):
            error.param = where if error.param is None else f"{where}.{error.param}"
        raise
    fields.finish()
    return call


def _semantic_call(fields: Fields) -> CallSpec:
    messages = None
    if "messages" in fields:
        items = enumerate(fields.items("messages"))
        messages = tuple(_message(item, f"{fields.where}.messages[{idx}]") for idx, item in items)
    template = None if fields.optional("template") is None else fields.text("template")
    fields.skip("messages")
    inputs, outputs = [], []
    for item in _parameters(fields):
        if "output" in item:
            outputs.append(_output(item))
        else:
            inputs.append(InputParameter(item.text("name"), _parts(item)))
        item.finish()
    call_id, name, priority = _heading(fields)
    return CallSpec(call_id, name, tuple(inputs), tuple(outputs), template, messages, priority)


def _native_call(fields: Fields) -> NativeCallSpec:
    inputs, outputs = [], []
    for item in _parameters(fields):
        name = item.text("name")
        if "output" in item:
            target = Fields(item.any("output"), item.path("output"))
            outputs.append(NativeOutput(name, _variable_id(target)))
            target.finish()
        else:
            value = VariableRef(_variable_id(item)) if "variable" in item else item.any("value")
            inputs.append(NativeInput(name, value))
        item.finish()
    call_id, name, priority = _heading(fields)
    return NativeCallSpec(call_id, name, fields.text("function"), tuple(inputs), tuple(outputs), priority)


def _heading(fields: Fields) -> tuple[str, str, int]:
    call_id = fields.text("id")
    return call_id, fields.text("name", call_id), fields.integer("priority", 0)


def _parameters(fields: Fields) -> Iterator[Fields]:
    for idx, item in enumerate(fields.items("parameters", ())):
        yield Fields(item, f"{fields.where}.parameters[{idx}]")


def _message(data: object, where: str) -> Message:
    fields = Fields(data, where, TemplateError)
    message = Message(fields.text("role"), fields.text("content"))
    fields.finish()
    return message


def _parts(fields: Fields) -> tuple[Part, ...]:
    _check_one(fields, "value", "variable", "parts")
    if "variable" in fields:
        return (VariableRef(_variable_id(fields)),)
    if "value" in fields:
        text = fields.text("value")
        return (text,) if text else ()
    items = enumerate(fields.items("parts"))
    return tuple(_part(item, f"{fields.where}.parts[{idx}]") for idx, item in items)


def _part(data: object, where: str) -> Part:
    if isinstance(data, str):
        check_unicode(data, where)
        return data
    fields = Fields(data, where)
    reference = VariableRef(_variable_id(fields))
    fields.finish()
    return reference


def _output(fields: Fields) -> OutputParameter:
    settings, where = fields.any("output"), fields.path("output")
    output = parse_output(settings, where, also=("variable",))
    return OutputParameter(fields.text("name"), _variable_id(Fields(settings, where)), output)


def _variable_id(fields: Fields) -> str:
    value = fields.text("variable")
    if not ID_PATTERN.fullmatch(value):
        raise fields.refusal("variable", value, f"an id that matches {ID_PATTERN.pattern}")
    return value


def _check_one(fields: Fields, *keys: str) -> None:
    given = [key for key in keys if key in fields]
    if len(given) != 1:
        allowed = ", ".join([*keys, "output"])
        raise InvalidRequest(
            f"{fields.where} has {' and '.join(given) or 'no content'}; it must have exactly one of {allowed}.",
            param=fields.where,
        )


def _variable_from_json(data: object, where: str) -> VariableSpec:
    fields = Fields(data, where)
    value = None if fields.optional("value") is None else fields.text("value")
    variable = VariableSpec(fields.text("id"), fields.text("name", ""), value)
    fields.finish()
    return variable


def _input_json(parameter: InputParameter) -> dict[str, Any]:
    if not parameter.parts:
        return {"name": parameter.name, "value": ""}
    if len(parameter.parts) == 1:
        part = parameter.parts[0]
        key = ("value", part) if isinstance(part, str) else ("variable", part.variable_id)
        return {"name": parameter.name, key[0]: key[1]}
    parts = [part if isinstance(part, str) else {"variable": part.variable_id} for part in parameter.parts]
    return {"name": parameter.name, "parts": parts}


def _output_json(parameter: OutputParameter) -> dict[str, Any]:
    settings = {"variable": parameter.variable_id, **output_settings(parameter.output)}
    return {"name": parameter.name, "output": settings}


def _variable_to_json(variable: VariableSpec) -> dict[str, Any]:
    body: dict[str, Any] = {"id": variable.id, "name": variable.name}
    return body if variable.value is None else body | {"value": variable.value}


def _native_parameters(call: NativeCallSpec) -> list[dict[str, Any]]:
    inputs = [
        {"name": item.name, "variable": item.value.variable_id}
        if isinstance(item.value, VariableRef)
        else {"name": item.name, "value": item.value}
        for item in call.inputs
    ]
    return [*inputs, *({"name": item.name, "output": {"variable": item.variable_id}} for item in call.outputs)]

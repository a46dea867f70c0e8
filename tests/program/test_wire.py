from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kea.errors import InvalidRequest
from kea.program.call import (
    CallSpec,
    InputParameter,
    NativeCallSpec,
    NativeInput,
    NativeOutput,
    OutputParameter,
    Program,
    VariableRef,
    VariableSpec,
)
from kea.program.output import DEFAULT_MAX_TOKENS, OutputOptions, output_settings, parse_output
from kea.program.template import Message
from kea.program.wire import call_from_json, program_from_json, program_to_json
from kea.types import Constraint, GenerateOptions, Sampling, Stopping


def call_json(**changes: Any) -> dict[str, Any]:
    body = {
        "id": "c1",
        "template": "Say {{word}}: {{out}}",
        "parameters": [{"name": "word", "value": "hello"}, {"name": "out", "output": {"variable": "v1"}}],
    }
    return body | changes


def test_a_call_is_read() -> None:
    call = call_from_json(call_json(priority=-3))
    assert isinstance(call, CallSpec)
    assert call.name == "c1"
    assert call.inputs == (InputParameter("word", ("hello",)),)
    assert call.writes == ("v1",)
    assert call.reads == ()
    assert call.priority == -3
    assert call.outputs[0].output.clamp
    assert call.outputs[0].output.options.stopping.max_tokens == DEFAULT_MAX_TOKENS


def test_only_inputs_that_the_template_names_are_waited_for() -> None:
    parameters = [
        {"name": "word", "parts": ["a", {"variable": "x"}, "b", {"variable": "y"}, {"variable": "x"}]},
        {"name": "trimmed", "variable": "z"},
        {"name": "out", "output": {"variable": "v1", "max_tokens": 5}},
    ]
    call = call_from_json(call_json(parameters=parameters))
    assert call.reads == ("x", "y")
    assert isinstance(call, CallSpec)
    assert not call.outputs[0].output.clamp


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"id": "a b"}, "call.id", "must match"),
        ({"id": 7}, "call.id", "must be a string"),
        ({"extra": 1}, "call.extra", "unknown key 'extra'; allowed are"),
        ({"template": None}, "call.template", "either a template or messages"),
        ({"messages": []}, "call.template", "either a template or messages"),
        ({"template": "{{nope}}"}, "call.template", "no parameter"),
        ({"priority": "high"}, "call.priority", "an integer"),
        ({"priority": True}, "call.priority", "an integer"),
        ({"priority": 10**9}, "call.priority", "within"),
        ({"parameters": "word"}, "call.parameters", "a list"),
        ({"parameters": [3]}, "call.parameters[0]", "a JSON object"),
        ({"parameters": [{"name": "word"}]}, "call.parameters[0]", "exactly one of value, variable, parts, output"),
        ({"parameters": [{"name": "word", "value": "a", "variable": "v"}]}, "call.parameters[0]", "exactly one"),
        ({"parameters": [{"name": "word", "value": 3}]}, "call.parameters[0].value", "a string"),
        ({"parameters": [{"name": "word", "value": "\ud800"}]}, "call.parameters[0].value", "lone surrogate"),
        ({"parameters": [{"name": "word", "parts": ["\ud800"]}]}, "call.parameters[0].parts[0]", "lone surrogate"),
        ({"template": "\ud800{{out}}"}, "call.template", "lone surrogate"),
        ({"parameters": [{"name": "word", "variable": "ü"}]}, "call.parameters[0].variable", "an id"),
        ({"parameters": [{"name": "word", "value": "a", "x": 1}]}, "call.parameters[0].x", "unknown key"),
        ({"parameters": [{"name": "out", "output": {}}]}, "call.parameters[0].output.variable", "has no 'variable'"),
        ({"parameters": [{"name": "a", "value": ""}, {"name": "a", "value": ""}]}, "call.parameters", "two parameters"),
    ],
)
def test_a_malformed_call_is_refused_with_its_path(changes: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        call_from_json(call_json(**changes))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"temperature": -1}, "output.temperature"),
        ({"temperature": float("nan")}, "output.temperature"),
        ({"temperature": "hot"}, "output.temperature"),
        ({"top_p": 0}, "output.top_p"),
        ({"max_tokens": 0}, "output.max_tokens"),
        ({"max_tokens": 2.5}, "output.max_tokens"),
        ({"max_tokens": 5, "min_tokens": 6}, "output.min_tokens"),
        ({"stop": ["a", ""]}, "output.stop"),
        ({"stop": [1]}, "output.stop"),
        ({"stop_token_ids": ["1"]}, "output.stop_token_ids"),
        ({"logit_bias": {"a": 1}}, "output.logit_bias"),
        ({"logit_bias": {"1": 200}}, "output.logit_bias[1]"),
        ({"logit_bias": [1]}, "output.logit_bias"),
        ({"choices": []}, "output.choices"),
        ({"choices": ["a", ""]}, "output.choices"),
        ({"json_schema": "x"}, "output.json_schema"),
        ({"regex": "a", "choices": ["b"]}, "output"),
        ({"ignore_eos": 1}, "output.ignore_eos"),
        ({"seed": "x"}, "output.seed"),
        ({"logprobs": 1}, "output.logprobs"),
        ([], "output"),
    ],
)
def test_bad_output_settings_are_refused_by_name(settings: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_output(settings)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("settings", "constraint"),
    [
        ({"regex": "a+"}, Constraint("regex", "a+")),
        ({"grammar": "start: 'a'"}, Constraint("grammar", "start: 'a'")),
        ({"choices": ["a", "b"]}, Constraint("choice", '["a", "b"]')),
        ({"json_schema": {"type": "object"}}, Constraint("json_schema", '{"type": "object"}')),
        ({"json_object": True}, Constraint("json_object", "")),
        ({"json_object": False}, None),
    ],
)
def test_constraints(settings: Any, constraint: Constraint | None) -> None:
    output = parse_output(settings)
    assert output.options.constraint == constraint
    assert parse_output(output_settings(output)) == output


names = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True)
ids = st.from_regex(r"[A-Za-z0-9_.:-]{1,12}", fullmatch=True)
references = st.builds(VariableRef, ids)
outputs = st.builds(
    OutputOptions,
    st.builds(
        GenerateOptions,
        st.builds(
            Stopping,
            st.integers(1, 5000),
            stop=st.lists(st.text(min_size=1), max_size=3).map(tuple),
            stop_token_ids=st.lists(st.integers(0, 9), max_size=2).map(tuple),
            ignore_eos=st.booleans(),
        ),
        st.builds(
            Sampling,
            temperature=st.floats(0, 2),
            top_p=st.floats(0.1, 1),
            logit_bias=st.dictionaries(st.integers(0, 99), st.floats(-100, 100), max_size=2),
            seed=st.none() | st.integers(0, 2**31),
        ),
        st.none() | st.builds(Constraint, st.just("regex"), st.text(min_size=1)),
    ),
    st.booleans(),
)


@st.composite
def calls(draw: st.DrawFn) -> CallSpec | NativeCallSpec:
    chosen = draw(st.lists(names, unique=True, min_size=1, max_size=5))
    num_outputs = draw(st.integers(1, len(chosen)))
    written, read = chosen[:num_outputs], chosen[num_outputs:]
    call_id, name, priority = draw(ids), draw(st.text()), draw(st.integers(-9, 9))
    if draw(st.booleans()):
        values = st.none() | st.integers() | st.text() | references
        inputs = tuple(NativeInput(item, draw(values)) for item in read)
        return NativeCallSpec(
            call_id, name, "f", inputs, tuple(NativeOutput(item, draw(ids)) for item in written), priority
        )
    parts = st.lists(st.text(min_size=1) | references, max_size=3).map(tuple)
    template = "".join(draw(st.text()) + "{{" + item + "}}" for item in [*read, *written])
    is_chat = draw(st.booleans())
    return CallSpec(
        call_id,
        name,
        tuple(InputParameter(item, draw(parts)) for item in read),
        tuple(OutputParameter(item, draw(ids), draw(outputs)) for item in written),
        None if is_chat else template,
        (Message("user", "hi"), Message("assistant", template)) if is_chat else None,
        priority,
    )


@given(st.lists(calls(), max_size=3), st.lists(st.builds(VariableSpec, ids, names, st.none() | st.text()), max_size=2))
def test_a_program_survives_its_wire_form(some: list[Any], variables: list[VariableSpec]) -> None:
    program = Program(tuple(some), tuple(variables))
    assert program_from_json(json.loads(json.dumps(program_to_json(program)))) == program


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["calls", "variables", "id", "parameters", "name", "value", "output", "template", "messages"]
                ),
                inner,
            )
        ),
    )
)
def test_any_json_is_read_or_refused(data: Any) -> None:
    for body in (data, {"calls": [data]}, {"variables": [data]}):
        try:
            program_from_json(body)
        except InvalidRequest as error:
            refused = error
            assert refused.param


def test_many_parameters_are_read_in_linear_time() -> None:
    parameters = [{"name": f"p{idx}", "value": ""} for idx in range(20_000)]
    call = call_from_json(call_json(template="{{out}}", parameters=[*parameters, call_json()["parameters"][1]]))
    assert len(call.inputs) == 20_000

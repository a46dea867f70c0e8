"""How much memory a session's programs and variables hold, in bytes: what a limit can be set on. Knows no sessions.

Texts count as Python holds them (`sys.getsizeof`: at most 4 bytes a character, and some 50 for each text, so many short
pieces weigh more than one long one), calls and variables by a constant each, measured on 4,000 of them.
"""

from __future__ import annotations

import sys
from typing import Any

from kea.program.call import AnyCall, CallSpec, NativeCallSpec, OutputParameter, Program, VariableRef
from kea.program.variable import text_bytes

CALL_BYTES = 3300
"""A call with its record, its place in the graph and what is counted of its outputs, without their texts."""
VARIABLE_BYTES = 610
NUMBER_BYTES = 32


def program_bytes(program: Program) -> int:
    """Return what a program holds beside the values of its variables, those of its outputs with them."""
    variables = sum(VARIABLE_BYTES + text_bytes(variable.name) for variable in program.variables)
    return variables + sum(_call_bytes(call) for call in program.calls)


def _call_bytes(call: AnyCall) -> int:
    fixed = CALL_BYTES + VARIABLE_BYTES * len(call.outputs) + text_bytes(call.name)
    if isinstance(call, NativeCallSpec):
        return fixed + sum(_value_bytes(item.value) for item in call.inputs)
    return fixed + _prompt_bytes(call) + sum(_output_bytes(output) for output in call.outputs)


def _prompt_bytes(call: CallSpec) -> int:
    """Return the template's bytes, once as it came and once parsed, and those of the plain inputs."""
    texts = [call.template or "", *(message.template for message in call.messages or ())]
    parts = (part for item in call.inputs for part in item.parts if isinstance(part, str))
    return 2 * sum(map(text_bytes, texts)) + sum(map(text_bytes, parts))


def _output_bytes(output: OutputParameter) -> int:
    options = output.output.options
    source = options.constraint.source if options.constraint is not None else ""
    numbers = len(options.stopping.stop_token_ids) + len(options.sampling.logit_bias)
    return text_bytes(source) + sum(map(text_bytes, options.stopping.stop)) + NUMBER_BYTES * numbers


def _value_bytes(value: Any) -> int:
    """Return the bytes of a JSON value; a list of work instead of recursion, for deep ones."""
    num_bytes, work = 0, [value]
    while work:
        item = work.pop()
        if isinstance(item, VariableRef):
            continue
        num_bytes += sys.getsizeof(item)
        if isinstance(item, dict):
            work.extend(item)
            work.extend(item.values())
        elif isinstance(item, list | tuple):
            work.extend(item)
    return num_bytes

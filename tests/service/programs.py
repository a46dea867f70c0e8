"""Short ways to write calls in tests, and to see what became of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kea.errors import KeaError
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
from kea.program.output import parse_output
from kea.program.template import Message, placeholders
from kea.service import Service, ServiceConfig, Session
from kea.types import GenerateOptions
from tests.fakes.engine import FakeEngine


def call(name: str, template: str | list[tuple[str, str]], **outputs: Any) -> CallSpec:
    """Make a call: keywords are its outputs' settings, every other placeholder reads the variable of its name."""
    text = template if isinstance(template, str) else "".join(content for _, content in template)
    read = [item for item in dict.fromkeys(placeholders(text)) if item not in outputs]
    return CallSpec(
        name,
        name,
        tuple(InputParameter(item, (VariableRef(item),)) for item in read),
        tuple(OutputParameter(item, item, parse_output(settings)) for item, settings in outputs.items()),
        template if isinstance(template, str) else None,
        None if isinstance(template, str) else tuple(Message(role, content) for role, content in template),
    )


def native(name: str, function: str, inputs: dict[str, Any], *outputs: str) -> NativeCallSpec:
    return NativeCallSpec(
        name,
        name,
        function,
        tuple(NativeInput(key, value) for key, value in inputs.items()),
        tuple(NativeOutput(item, item) for item in outputs),
    )


def program(*calls: CallSpec | NativeCallSpec, **values: str | None) -> Program:
    """Make a program: keyword arguments are declared variables, set unless None."""
    return Program(calls, tuple(VariableSpec(name, name, value) for name, value in values.items()))


def service(*engines: FakeEngine, **options: Any) -> Service:
    """Make a service over fake engines, with the first one's tokenizer and quick retries."""
    config = ServiceConfig(**({"retry_delay_s": 0.0} | options.pop("config", {})))
    return Service(engines, engines[0].tokenizer, config=config, **options)


def shout(prompt: str, options: GenerateOptions) -> str:
    return prompt.upper()


async def settle(some: Service) -> None:
    """Let everything run that can; then the books must agree."""
    for _ in range(100):
        await asyncio.sleep(0)
    some.check()


def states(some: Service, session: Session) -> dict[str, str]:
    return {row.name: row.state.value for row in some.status(session).calls}


async def collect(source: AsyncIterator[str], pieces: list[str]) -> None:
    async for piece in source:
        pieces.append(piece)  # noqa: PERF401 - the pieces before an error are wanted


async def fails(some: Service, session: Session, variable: str) -> KeaError:
    with pytest.raises(KeaError) as caught:
        await asyncio.wait_for(some.get(session, variable), 5)
    return caught.value

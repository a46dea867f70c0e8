"""Semantic functions: a template and typed parameters, made from a Python function. Knows no transport.

The function's docstring is the template (or `messages=` of the decorator is); its body is never run.
"""

from __future__ import annotations

import functools
import textwrap
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack, overload

from kea.client.annotations import Input
from kea.client.rendering import Rendered, render
from kea.client.session import Session, choose_session
from kea.client.signature import read_parameters
from kea.client.values import parts_of, text_of, variables_in
from kea.client.variable import Variable
from kea.errors import InvalidRequest, TemplateError
from kea.program.call import CallSpec, InputParameter, OutputParameter, Part
from kea.program.output import OutputSettings
from kea.program.template import Message, parse_messages, parse_template, placeholders

Source = str | tuple[Message, ...]


class SemanticFunction:
    """A function whose body is a prompt. Calling it submits one call and returns its outputs at once, as variables.

    One output returns a `Variable`, several a named tuple of them. Outside a session, and without a variable among the
    arguments, it returns the `Rendered` prompt.
    """

    def __init__(
        self, function: Callable[..., Any], source: Source, priority: int, defaults: Mapping[str, Any]
    ) -> None:
        functools.update_wrapper(self, function)
        self.name = function.__name__
        self.source = source
        self.priority = priority
        self.parameters = read_parameters(function)
        self.outputs = {name: output.resolve(name, defaults) for name, output in self.parameters.outputs.items()}
        self._check_template()
        self._result_type = _result_type(self.name, tuple(self.outputs))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Submit a call in the current session, else in that of the first variable among the arguments.

        Positions are those of the inputs; an output may be given by its name, as a declared variable to write to.
        Raises `TypeError` as Python does, `InvalidRequest` for what is no text, `Cancelled` in a session that ended.
        """
        arguments = self._bind(args, kwargs)
        session = choose_session(variables_in(arguments.values()))
        return self._render(arguments) if session is None else self._submit(session, arguments)

    def submit(self, session: Session, *args: Any, **kwargs: Any) -> Any:
        """Call it in this session, whatever the current one is: on another thread, for example."""
        return self._submit(session, self._bind(args, kwargs))

    def call_at(self, session: Session, idx: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call it as the item `idx` of a map: `find[3]` is what its call is called then, in errors and timelines."""
        return self._submit(session, self._bind(args, dict(kwargs)), f"{self.name}[{idx}]")

    def render(self, *args: Any, **kwargs: Any) -> Rendered:
        """Return the prompt as text, without a model, also within a session."""
        return self._render(self._bind(args, kwargs))

    def __repr__(self) -> str:
        return f"<kea.function {self.name}{self.parameters.signature}>"

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the argument of every parameter. Raises `TypeError` that names this function and what it takes."""
        unknown = [name for name in kwargs if name not in self.parameters.signature.parameters]
        try:
            if unknown:
                raise TypeError(f"got an unexpected keyword argument {unknown[0]!r}")
            return self.parameters.bind(args, kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}{self.parameters.signature}: {error}") from None

    def _submit(self, session: Session, arguments: Mapping[str, Any], call_name: str | None = None) -> Any:
        call_name = call_name or self.name
        targets = {name: self._target(name, arguments[name]) for name in self.outputs}
        session.check_owned(variables_in(arguments.values()))
        ids = {name: session.create_id() if target is None else target.id for name, target in targets.items()}
        call = CallSpec(
            id=session.create_id(),
            name=call_name,
            inputs=tuple(
                InputParameter(name, self._parts(name, arguments[name], call_name)) for name in self.parameters.inputs
            ),
            outputs=tuple(OutputParameter(name, ids[name], self.outputs[name]) for name in self.outputs),
            template=self.source if isinstance(self.source, str) else None,
            messages=None if isinstance(self.source, str) else self.source,
            priority=self.priority,
        )
        written = session.submit(call, targets)
        return written[0] if self._result_type is None else self._result_type(*written)

    def _target(self, name: str, value: object) -> Variable | None:
        if value is None or isinstance(value, Variable):
            return value
        raise InvalidRequest(
            f"output {name!r} of {self.name} is {value!r}; it may be given a variable to write to, or nothing.",
            param=name,
        )

    def _parts(self, name: str, value: object, call_name: str) -> tuple[Part, ...]:
        annotation = self.parameters.inputs[name]
        where = f"argument {name!r} of {call_name}"
        if isinstance(annotation, Input):
            return parts_of(value, annotation.separator, where)
        if isinstance(value, Variable):
            raise InvalidRequest(
                f"{where} is a variable, but the parameter is a plain value.",
                hint=f"Annotate it: {name}: kea.Input",
                param=name,
            )
        text = text_of(value, where)
        return (text,) if text else ()

    def _render(self, arguments: Mapping[str, Any]) -> Rendered:
        for name in self.outputs:
            self._target(name, arguments[name])
        given = [item for name in self.parameters.inputs for item in variables_in([arguments[name]])]
        if given:
            raise InvalidRequest(f"{self.name} cannot be rendered: the text of {given[0]!r} may not be written yet.")
        parts = {name: self._parts(name, arguments[name], self.name) for name in self.parameters.inputs}
        return render(self.source, {name: "".join(map(str, items)) for name, items in parts.items()})

    def _check_template(self) -> None:
        inputs, outputs = set(self.parameters.inputs), set(self.outputs)
        try:
            if isinstance(self.source, str):
                parse_template(self.source, inputs, outputs)
            else:
                parse_messages(self.source, inputs, outputs)
        except TemplateError as error:
            raise TemplateError(f"function {self.name!r}: {error.message}", hint=error.hint) from None
        texts = [self.source] if isinstance(self.source, str) else [message.template for message in self.source]
        unused = sorted(inputs - {name for text in texts for name in placeholders(text)})
        if unused:
            raise TemplateError(f"function {self.name!r}: its template does not name the parameter {unused[0]!r}.")


@overload
def function(fn: Callable[..., Any], /) -> SemanticFunction: ...


@overload
def function(
    *, messages: Sequence[tuple[str, str]] | None = None, priority: int = 0, **defaults: Unpack[OutputSettings]
) -> Callable[[Callable[..., Any]], SemanticFunction]: ...


def function(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    messages: Sequence[tuple[str, str]] | None = None,
    priority: int = 0,
    **defaults: Unpack[OutputSettings],
) -> SemanticFunction | Callable[[Callable[..., Any]], SemanticFunction]:
    """Make a semantic function of a Python function: `@kea.function`, or with arguments `@kea.function(temperature=0)`.

    `messages`: a chat prompt as (role, template) pairs, instead of the docstring; outputs stand in assistant messages.
    `priority`: smaller is earlier. `defaults`: settings of every output that does not set them itself.
    Raises `TemplateError` and `InvalidRequest` for what is wrong with template or settings, here rather than at a call.
    """

    def decorate(fn: Callable[..., Any]) -> SemanticFunction:
        return SemanticFunction(fn, _source_of(fn, messages), priority, dict(defaults))

    return decorate if fn is None else decorate(fn)


def _source_of(fn: Callable[..., Any], messages: Sequence[tuple[str, str]] | None) -> Source:
    if messages is not None:
        return tuple(Message(role, text) for role, text in messages)
    if not fn.__doc__:
        raise TemplateError(
            f"function {fn.__name__!r} has no docstring, which is its template.",
            hint="Write one, or give messages=[...]; note that python -OO removes docstrings.",
        )
    return _dedent(fn.__doc__)


def _dedent(text: str) -> str:
    """Take the indentation of its function from a docstring, as `inspect.cleandoc` does; tabs stay what they are."""
    first, newline, rest = text.partition("\n")
    lines = (first.lstrip() + newline + textwrap.dedent(rest)).split("\n")
    filled = [idx for idx, line in enumerate(lines) if line.strip()]
    return "\n".join(lines[filled[0] : filled[-1] + 1]) if filled else ""


def _result_type(name: str, outputs: tuple[str, ...]) -> Callable[..., Any] | None:
    if len(outputs) < 2:
        return None
    try:
        return namedtuple(f"{name}_outputs", outputs)
    except ValueError as error:
        raise TemplateError(f"function {name!r}: {error}") from error

"""The parameters of a Python function as inputs and outputs. Knows no templates."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from kea.client.annotations import Input, Output
from kea.errors import TemplateError


@dataclass(frozen=True, slots=True)
class Parameters:
    """Inputs by name (None: a plain Python value), outputs by name, and how calls bind their arguments.

    In a call, positions are those of the inputs alone; an output may be given by keyword, as a variable to write to.
    """

    inputs: Mapping[str, Input | None]
    outputs: Mapping[str, Output]
    signature: inspect.Signature

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the argument of every parameter. Raises `TypeError` as Python does."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments


def read_parameters(function: Callable[..., Any]) -> Parameters:
    """Read the annotations `Input`, `Input(...)`, `Output`, `Output(...)`, alone or inside `Annotated`.

    Raises `TemplateError` for *args and **kwargs, and for an annotation that cannot be evaluated.
    """
    inputs: dict[str, Input | None] = {}
    outputs: dict[str, Output] = {}
    call: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TemplateError(f"function {function.__name__!r} takes {parameter}; its parameters must be named.")
        annotation = _evaluate(parameter.annotation, function, parameter.name)
        if isinstance(annotation, Output):
            outputs[parameter.name] = annotation
        else:
            inputs[parameter.name] = annotation
            call.append(parameter.replace(annotation=parameter.empty))
    targets = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in outputs]
    return Parameters(inputs, outputs, inspect.Signature([*call, *targets]))


def _evaluate(annotation: Any, function: Callable[..., Any], name: str) -> Input | Output | None:
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, function.__globals__)
        except Exception as error:
            if "Input" not in annotation and "Output" not in annotation:
                return None  # a plain value, annotated for a type checker alone
            raise TemplateError(
                f"function {function.__name__!r}: the annotation {annotation} of {name!r} is unusable: {error}.",
                hint="Names in it must be globals of the module while `from __future__ import annotations` is on.",
            ) from error
    candidates = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    for candidate in candidates:
        if isinstance(candidate, Input | Output):
            return candidate
        if candidate is Input or candidate is Output:
            return candidate()
    return None

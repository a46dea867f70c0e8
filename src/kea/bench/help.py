"""The help of commands, without the types that Typer writes beside flags and arguments (`--help <bool>`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption


def _no_type(ctx: Any) -> str:  # noqa: ARG001 - Typer passes it by this name
    return ""


def _hide_types(params: Iterable[Any]) -> None:
    for param in params:
        if isinstance(param, TyperArgument) or (isinstance(param, TyperOption) and param.is_flag):
            param.display_type_rich = _no_type  # type: ignore[method-assign]


class PlainCommand(TyperCommand):
    """A command whose flags and arguments are shown by their names alone."""

    def get_params(self, ctx: Any) -> list[Any]:
        params = list(super().get_params(ctx))
        _hide_types(params)
        return params


class PlainGroup(TyperGroup):
    """The same for a group; its commands are `PlainCommand` each."""

    def get_params(self, ctx: Any) -> list[Any]:
        params = list(super().get_params(ctx))
        _hide_types(params)
        return params

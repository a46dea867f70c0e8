"""The annotations of a semantic function's parameters: `Input` and `Output`. Knows no sessions and no templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Unpack

from kea.program.output import OutputOptions, OutputSettings, parse_output
from kea.types import Criteria

LATENCY: Final = Criteria.LATENCY
THROUGHPUT: Final = Criteria.THROUGHPUT
TTFT: Final = Criteria.TTFT
TPOT: Final = Criteria.TPOT


class Input:
    """A parameter that is filled with a value, a variable, or lists of them.

    The items of a list, at any depth, are joined with `separator`. Write `Input` or `Input(separator=...)`.
    """

    def __init__(self, *, separator: str = "\n") -> None:
        self.separator = separator


class Output:
    """A parameter that the model writes, with its settings (see `kea.program.output.OutputSettings`).

    `json_schema` may also be a pydantic model. Settings that are not given come from the function's defaults.
    """

    def __init__(self, **settings: Unpack[OutputSettings]) -> None:
        self.settings: dict[str, Any] = _plain(settings)

    def resolve(self, name: str, defaults: Mapping[str, Any]) -> OutputOptions:
        """Return the checked options of the output `name`. Raises `InvalidRequest`."""
        return parse_output(_plain(defaults) | self.settings, f"output {name!r}")


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON has them: a pydantic model class becomes its schema."""
    plain = {name: value for name, value in settings.items() if value is not None}
    schema_of = getattr(plain.get("json_schema"), "model_json_schema", None)
    return plain if schema_of is None else plain | {"json_schema": schema_of()}

"""A model's config as transformers read it once, read again without transformers. Knows no weights.

Only configs are noted of which all that this room reads is equal in both forms. Imports torch to note one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kea.errors import KeaError
from kea.models.describing import describe_config
from kea.models.limits import read_limits
from kea.models.notes import Note, NotesOf
from kea.models.source import read_config
from kea.models.support import check_config

KIND = "config"


class NotedValues:
    """Has the attributes of the text config of transformers that it was made of; `names` are further names of some."""

    def __init__(self, values: Mapping[str, Any], names: Mapping[str, str]) -> None:
        self._values = values
        self._names = names

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[self._names.get(name, name)]
        except KeyError:
            raise AttributeError(f"This config has no {name}.") from None

    def get_text_config(self) -> NotedValues:
        return self


def read_noting(source: str, revision: str | None, notes: NotesOf | None) -> Any:
    """Return the config of a directory or hub id: as it was noted, else as transformers reads it, which is noted.

    A config is noted where our own decoder covers its model and nothing is lost by it. Raises as `read_config` does.
    """
    noted = None if notes is None else notes.try_read(KIND)
    if noted is not None:
        return NotedValues(**noted.facts)
    config = read_config(source, revision)
    facts = None if notes is None else _as_facts(config)
    if notes is not None and facts is not None and _are_equal(config, NotedValues(**facts), source):
        notes.write(Note(facts), KIND)
    return config


def as_whole(config: Any, source: str, revision: str | None) -> Any:
    """Return the config of transformers that a config, which may be a noted one, was made of."""
    return read_config(source, revision) if isinstance(config, NotedValues) else config


def _as_facts(config: Any) -> dict[str, Any] | None:
    from kea.models.lean import try_read_spec  # which imports torch; to read a note does not

    if config.get_text_config() is not config or try_read_spec(config) is None:
        return None
    facts = {"values": config.to_dict(), "names": dict(config.attribute_map)}
    try:
        read: dict[str, Any] = json.loads(json.dumps(facts))
    except (TypeError, ValueError):  # an option that JSON cannot hold
        return None
    return read


def _are_equal(config: Any, noted: NotedValues, source: str) -> bool:
    from kea.models.lean import try_read_spec

    try:
        check_config(config)
        check_config(noted)
        readings = [
            (
                try_read_spec(one),
                read_limits(one, None),
                describe_config(source, one, "float32"),
                str(one.dtype).removeprefix("torch."),
                one.eos_token_id,
                one.rope_parameters,
            )
            for one in (config, noted)
        ]
    except (KeaError, AttributeError):
        return False
    return bool(readings[0] == readings[1])

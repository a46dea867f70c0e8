"""How many positions a model may use, told from its config. Knows no weights, no memory, no requests.

Frequencies that depend on the length are pinned for all contexts (see `rotary`): dynamic NTK to its unscaled ones, so
it ends at the trained length; longrope to its short ones up to the original length, or to its long ones where a larger
`max_len` is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kea.errors import InvalidRequest, check_range

LENGTH_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
STRETCHING_TYPES = frozenset({"linear", "yarn"})


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_len` positions are served. `position_rows`: size of the table of learned positions, None for rotary ones."""

    max_len: int
    use_long_rope: bool
    position_rows: int | None


def read_limits(config: Any, max_len: int | None) -> Limits:
    """Return the limits of a model, at most `max_len` where given.

    Raises `InvalidRequest` where the model allows fewer, by the name that users know: max_model_len.
    """
    config = config.get_text_config()
    trained = _trained_len(config)
    if trained is None and max_len is None:
        raise InvalidRequest(
            f"The config of this {config.model_type} model names no maximal length; max_model_len must be given.",
            param="max_model_len",
        )
    ropes = _rope_parameters(config)
    if trained is None:
        return Limits(max_len or 0, False, None)
    if max_len is not None:
        check_range("max_model_len", max_len, 1, max([trained, *(_stretched_len(rope) for rope in ropes)]))
    short = [int(rope["original_max_position_embeddings"]) for rope in ropes if rope["rope_type"] == "longrope"]
    position_rows = None if ropes else trained
    if not short:
        return Limits(max_len or trained, False, position_rows)
    use_long = max_len is not None and max_len > min(short)
    return Limits(max_len or min(short), use_long, position_rows)


def _trained_len(config: Any) -> int | None:
    values = (getattr(config, name, None) for name in LENGTH_NAMES)
    return next((int(value) for value in values if value), None)


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """Return the sets of rotary parameters: none, one, or one per layer type."""
    found: Any = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in found:
        return [found]
    return [part for part in found.values() if isinstance(part, dict) and "rope_type" in part]


def _stretched_len(rope: dict[str, Any]) -> int:
    if rope["rope_type"] not in STRETCHING_TYPES:
        return 0
    return int(rope.get("original_max_position_embeddings", 0) * rope.get("factor", 1.0))

"""How variables are asked for: criteria and deadlines of a reader. Knows no routes."""

from __future__ import annotations

import math

from starlette.datastructures import QueryParams

from kea.errors import InvalidRequest, NotFound
from kea.types import Criteria

MAX_ID_DIGITS = 16


def parse_session_id(given: str) -> int:
    """Return a session's id from a path. Raises `NotFound` for what could be none."""
    if not (given.isascii() and given.isdigit() and len(given) <= MAX_ID_DIGITS):
        raise NotFound(f"There is no session {given[:40]!r}.", param="session_id")
    return int(given)


def parse_criteria(value: str | None) -> Criteria | None:
    """Return the criterion of that name. Raises `InvalidRequest`."""
    if not value:
        return None
    try:
        return Criteria(value)
    except ValueError:
        allowed = ", ".join(item.value for item in Criteria)
        raise InvalidRequest(f"criteria is {value[:40]!r}; allowed: {allowed}.", param="criteria") from None


def parse_deadline(value: str | None) -> float | None:
    """Return the seconds of a deadline. Raises `InvalidRequest`."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InvalidRequest(f"deadline_s is {value[:40]!r}; it must be a number of seconds.", param="deadline_s")
    return seconds


def criteria_of_query(query: QueryParams) -> Criteria | None:
    return parse_criteria(query.get("criteria"))

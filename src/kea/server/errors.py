"""Errors on the wire: one table from error class to HTTP status and OpenAI type. Knows no routes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from starlette.responses import Response

from kea import errors

RETRY_AFTER_S = 1


class Dialect(Enum):
    """Whose clients read the error. KEA: all fields of docs/wire.md.

    PARROT: also the top-level keys that its client needs.
    """

    OPENAI = "openai"
    KEA = "kea"
    PARROT = "parrot"


@dataclass(frozen=True, slots=True)
class WireError:
    """How an error class looks from outside."""

    status: int
    type: str


WIRE: Mapping[type[errors.KeaError], WireError] = {
    errors.KeaError: WireError(500, "server_error"),
    errors.InvalidRequest: WireError(400, "invalid_request_error"),
    errors.ContextLengthExceeded: WireError(400, "invalid_request_error"),
    errors.TemplateError: WireError(400, "invalid_request_error"),
    errors.Unsupported: WireError(400, "invalid_request_error"),
    errors.AuthenticationFailed: WireError(401, "authentication_error"),
    errors.PermissionDenied: WireError(403, "permission_error"),
    errors.NotFound: WireError(404, "not_found_error"),
    errors.Conflict: WireError(409, "conflict_error"),
    errors.LimitExceeded: WireError(429, "rate_limit_error"),
    errors.CallFailed: WireError(424, "call_failed_error"),
    errors.Cancelled: WireError(409, "cancelled_error"),
    errors.DeadlineExceeded: WireError(408, "timeout_error"),
    errors.ModelLoadFailed: WireError(500, "server_error"),
    errors.EngineFault: WireError(500, "server_error"),
    errors.EngineDied: WireError(503, "service_unavailable_error"),
    errors.ServiceClosing: WireError(503, "service_unavailable_error"),
    errors.Unreachable: WireError(502, "service_unavailable_error"),
}

TOO_LARGE = WireError(413, "invalid_request_error")


def wire_of(error: errors.KeaError) -> WireError:
    """Return status and type of an error; what is too large for ever (not retryable) is no rate limit."""
    if isinstance(error, errors.LimitExceeded) and not error.retryable:
        return TOO_LARGE
    return next(WIRE[cls] for cls in type(error).__mro__ if cls in WIRE)


def error_body(error: errors.KeaError, dialect: Dialect = Dialect.OPENAI) -> dict[str, Any]:
    """Return the JSON body of an error. OpenAI's clients show `message` alone, so there it holds the hint too."""
    described: dict[str, Any] = {
        "message": str(error),
        "type": wire_of(error).type,
        "param": error.param,
        "code": error.code,
    }
    if dialect is Dialect.KEA:
        described |= error.to_dict()
    body: dict[str, Any] = {"error": described}
    return {**body, "traceback": ""} if dialect is Dialect.PARROT else body


def error_response(
    error: errors.KeaError, dialect: Dialect = Dialect.OPENAI, headers: Mapping[str, str] | None = None
) -> Response:
    """Build the answer of a failed request. `x-should-retry` tells OpenAI's clients what `retryable` tells ours."""
    all_headers = {"x-should-retry": "true" if error.retryable else "false", **(headers or {})}
    if error.retryable:
        all_headers["retry-after"] = str(RETRY_AFTER_S)
    if isinstance(error, errors.AuthenticationFailed):
        all_headers["www-authenticate"] = "Bearer"
    content = json.dumps(error_body(error, dialect), ensure_ascii=False).encode(errors="replace")
    return Response(content, wire_of(error).status, all_headers, "application/json")


def as_kea_error(error: Exception) -> errors.KeaError:
    """Return the error itself, or the `EngineFault` that stands for a bug of ours; its details stay in the log."""
    if isinstance(error, errors.KeaError):
        return error
    fault = errors.EngineFault(
        f"An unexpected {type(error).__name__} ended this request.", hint="The log has its details."
    )
    fault.__cause__ = error
    return fault

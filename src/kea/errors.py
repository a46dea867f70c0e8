"""The tree of errors. Owns every typed error of Kea and its wire form; knows nothing else of ours.

KeaError
├── InvalidRequest             the caller's input is wrong: names the parameter, the value and what is allowed
│   ├── ContextLengthExceeded  the prompt and its output do not fit the model or the memory
│   ├── TemplateError          a prompt template or a program is malformed (unknown name, cycle)
│   └── Unsupported            a known feature that this engine, model or build refuses by name
├── AuthenticationFailed       no key, or a wrong one
├── PermissionDenied           a valid key that may not do this
├── NotFound                   no such session, variable, model or route
├── Conflict                   the state forbids it (a variable written twice)
├── LimitExceeded              too large, too many; may be tried again later when `retryable`
├── CallFailed                 a variable cannot be set: its producer failed; carries the cause
├── Cancelled                  the caller, or the end of its session, ended the work
├── DeadlineExceeded           the deadline of a variable passed
├── ModelLoadFailed            the model cannot be loaded, or not exactly
├── EngineFault                the engine failed at this request: our bug, or the hardware's
├── EngineDied                 the engine's process ended with the request on it; it is restarted
├── ServiceClosing             the service is shutting down
└── Unreachable                the server at this address does not answer
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar


class KeaError(Exception):
    """Base of all errors of Kea.

    `code` names the class on the wire, `retryable` says whether the same request may succeed later, `hint` is one
    sentence that says what to do.
    """

    code: ClassVar[str] = "error"
    retryable: bool = False

    def __init__(self, message: str, *, hint: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (error_from_dict, (self.to_dict(),))

    def to_dict(self) -> dict[str, Any]:
        """Return the wire form, which `error_from_dict` reads back to the same class."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "param": self.param,
            "retryable": self.retryable,
            "cause": _cause_of(self),
        }


def _cause_of(error: KeaError) -> dict[str, Any] | None:
    cause = error.__cause__
    return cause.to_dict() if isinstance(cause, KeaError) else None


class InvalidRequest(KeaError):
    code = "invalid_request"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class TemplateError(InvalidRequest):
    code = "template_error"


class Unsupported(InvalidRequest):
    code = "unsupported"


class AuthenticationFailed(KeaError):
    code = "authentication_failed"


class PermissionDenied(KeaError):
    code = "permission_denied"


class NotFound(KeaError):
    code = "not_found"


class Conflict(KeaError):
    code = "conflict"


class LimitExceeded(KeaError):
    code = "limit_exceeded"

    def __init__(
        self, message: str, *, hint: str | None = None, param: str | None = None, retryable: bool = True
    ) -> None:
        super().__init__(message, hint=hint, param=param)
        self.retryable = retryable


class CallFailed(KeaError):
    code = "call_failed"


class Cancelled(KeaError):
    code = "cancelled"


class DeadlineExceeded(KeaError):
    code = "deadline_exceeded"


class ModelLoadFailed(KeaError):
    code = "model_load_failed"


class EngineFault(KeaError):
    code = "engine_fault"


class EngineDied(KeaError):
    code = "engine_died"
    retryable = True


class ServiceClosing(KeaError):
    code = "service_closing"
    retryable = True


class Unreachable(KeaError):
    code = "unreachable"
    retryable = True


def all_error_classes() -> Iterator[type[KeaError]]:
    """Yield every class of the tree, base first."""
    pending: list[type[KeaError]] = [KeaError]
    while pending:
        cls = pending.pop(0)
        yield cls
        pending.extend(cls.__subclasses__())


def error_from_dict(data: Mapping[str, Any]) -> KeaError:
    """Rebuild an error from `KeaError.to_dict`; an unknown code becomes a plain `KeaError`."""
    classes = {cls.code: cls for cls in all_error_classes()}
    cls = classes.get(str(data.get("code")), KeaError)
    error = cls(str(data["message"]), hint=data.get("hint"), param=data.get("param"))
    error.retryable = bool(data.get("retryable", False))
    if data.get("cause"):
        error.__cause__ = error_from_dict(data["cause"])
    return error


def check_range(name: str, value: float, low: float | None = None, high: float | None = None) -> None:
    """Raise `InvalidRequest` unless low <= value <= high (a missing bound is open)."""
    is_low = low is not None and not value >= low
    is_high = high is not None and not value <= high
    if is_low or is_high:
        allowed = " and ".join(
            part
            for part in (
                f"at least {low:g}" if low is not None else "",
                f"at most {high:g}" if high is not None else "",
            )
            if part
        )
        raise InvalidRequest(f"{name} is {value!r}; it must be {allowed}.", param=name)

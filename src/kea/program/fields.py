"""Strict reading of JSON objects: every key typed, unknown keys refused. Knows no field of its own.

Errors are `InvalidRequest` (or the class given) and name the place, the value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kea.errors import InvalidRequest


class Fields:
    """Reads one JSON object at `where`; `finish()` refuses whatever was not read."""

    __slots__ = ("_data", "_error", "_known", "where")

    def __init__(self, data: object, where: str, error: type[InvalidRequest] = InvalidRequest) -> None:
        if not isinstance(data, Mapping):
            raise error(f"{where} is {shorten(data)}; it must be a JSON object.", param=where)
        self.where = where
        self._data = data
        self._error = error
        self._known: list[str] = []

    def __contains__(self, key: str) -> bool:
        """Tell whether the key is there and not null."""
        return self._data.get(key) is not None

    def has(self, key: str) -> bool:
        """Tell whether the key is there, null or not."""
        return key in self._data

    def any(self, key: str) -> Any:
        self._known.append(key)
        if key not in self._data:
            raise self._error(f"{self.where} has no {key!r}.", param=self.path(key))
        return self._data[key]

    def optional(self, key: str) -> Any:
        """Return the value as it is; None when the key is absent."""
        self._known.append(key)
        return self._data.get(key)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._read(key, default)
        if not isinstance(value, str):
            raise self.refusal(key, value, "a string")
        check_unicode(value, self.path(key), self._error)
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._read(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refusal(key, value, "an integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._read(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refusal(key, value, "a number")
        return value

    def boolean(self, key: str, default: bool | None = None) -> bool:
        value = self._read(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, value, "true or false")
        return value

    def items(self, key: str, default: Sequence[Any] | None = None) -> Sequence[Any]:
        value = self._read(key, default)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise self.refusal(key, value, "a list")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Read a string, or a list of strings; an absent key is an empty list."""
        value = self._read(key, ())
        texts = (value,) if isinstance(value, str) else value
        if not isinstance(texts, Sequence) or not all(isinstance(item, str) for item in texts):
            raise self.refusal(key, value, "a string or a list of strings")
        for item in texts:
            check_unicode(item, self.path(key), self._error)
        return tuple(texts)

    def integers(self, key: str) -> tuple[int, ...]:
        value = self.items(key, ())
        if any(isinstance(item, bool) or not isinstance(item, int) for item in value):
            raise self.refusal(key, value, "a list of integers")
        return tuple(value)

    def skip(self, *keys: str) -> None:
        """Count keys as known without reading them."""
        self._known.extend(keys)

    def finish(self) -> None:
        unknown = sorted(str(key) for key in self._data if key not in self._known)
        if unknown:
            allowed = ", ".join(sorted(set(self._known)))
            raise self._error(
                f"{self.where} has the unknown key {unknown[0]!r}; allowed are {allowed}.", param=self.path(unknown[0])
            )

    def path(self, key: str) -> str:
        return f"{self.where}.{key}"

    def refusal(self, key: str, value: object, allowed: str) -> InvalidRequest:
        """Return the error for a value that is not allowed."""
        return self._error(f"{self.path(key)} is {shorten(value)}; it must be {allowed}.", param=self.path(key))

    def _read(self, key: str, default: Any) -> Any:
        self._known.append(key)
        value = self._data.get(key)
        if value is not None:
            return value
        if default is None:
            raise self._error(f"{self.where} has no {key!r}.", param=self.path(key))
        return default


def check_unicode(text: str, where: str, error: type[InvalidRequest] = InvalidRequest) -> None:
    """Refuse a text with half of a surrogate pair: it is no Unicode, has no bytes, and no tokenizer takes it."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as found:
        raise error(
            f"{where} has the lone surrogate {text[found.start]!a} at {found.start}; it must be Unicode.",
            hint="Decode bytes with errors='replace', not 'surrogateescape'.",
            param=where,
        ) from None


def shorten(value: object, limit: int = 80) -> str:
    """Return the repr of a value for an error message, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."

"""Reading JSON as it is written: where a value ends, and tool calls of the form {"name": ..., "arguments": {...}}."""

from __future__ import annotations

import json
from enum import Enum

from kea.server.parsers.base import CallArguments, CallBegin, Delta, Status

NAME_KEY = "name"
ARGUMENT_KEYS = ("arguments", "parameters")
WHITE_SPACE = " \t\r\n"
NO_ARGUMENTS = "{}"


class Taken(Enum):
    """What became of a character: part of the value, its last, or the first one behind it."""

    INSIDE = "inside"
    LAST = "last"
    BEHIND = "behind"


class ValueScanner:
    """Finds the end of one JSON value by its brackets and quotes. The first character must not be white space."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_string = False
        self._is_escaped = False

    def take(self, char: str) -> Taken:
        if self._is_string:
            return self._take_in_string(char)
        if char == '"':
            self._is_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            if self._depth == 0:
                return Taken.BEHIND
            self._depth -= 1
            return Taken.INSIDE if self._depth else Taken.LAST
        elif self._depth == 0 and (char == "," or char in WHITE_SPACE):
            return Taken.BEHIND
        return Taken.INSIDE

    def _take_in_string(self, char: str) -> Taken:
        if self._is_escaped:
            self._is_escaped = False
        elif char == "\\":
            self._is_escaped = True
        elif char == '"':
            self._is_string = False
            return Taken.INSIDE if self._depth else Taken.LAST
        return Taken.INSIDE


class _Expects(Enum):
    OBJECT = "{"
    KEY = "key"
    COLON = ":"
    VALUE = "value"
    IN_KEY = "in key"
    IN_VALUE = "in value"
    COMMA = ","


class CallScanner:
    """Reads one JSON object that is a tool call, and gives its arguments as they are written.

    It fails on what is no JSON object, on one without a name, and with `needs_arguments` on one without arguments.
    Source of the form: the chat templates of Hermes, Qwen, Llama 3 and Mistral.
    """

    def __init__(self, call_idx: int, *, needs_arguments: bool = False) -> None:
        self.status = Status.OPEN
        self.raw = ""
        self.num_begun = 0
        self._call_idx = call_idx
        self._needs_arguments = needs_arguments
        self._expects = _Expects.OBJECT
        self._value = ValueScanner()
        self._token = ""
        self._key = ""
        self._name: str | None = None
        self._has_arguments = False
        self._arguments = ""  # read, but not given yet
        self._is_given = False

    def feed(self, text: str) -> tuple[list[Delta], str]:
        """Take text up to the end of the object; return the pieces and the text behind it."""
        used = 0
        for char in text:
            if self.status is not Status.OPEN:
                break
            self._take(char)
            self._note_begin()
            used += 1
        self.raw += text[:used]
        return self._give(), text[used:]

    def _take(self, char: str) -> None:
        if self._expects in (_Expects.IN_KEY, _Expects.IN_VALUE):
            self._take_inside(char)
        elif char not in WHITE_SPACE:
            self._take_outside(char)

    def _take_outside(self, char: str) -> None:
        match self._expects, char:
            case (_Expects.OBJECT, "{"):
                self._expects = _Expects.KEY
            case (_Expects.KEY, '"'):
                self._begin(_Expects.IN_KEY, char)
            case (_Expects.KEY | _Expects.COMMA, "}"):
                self._end_object()
            case (_Expects.COLON, ":"):
                self._expects = _Expects.VALUE
            case (_Expects.COMMA, ","):
                self._expects = _Expects.KEY
            case (_Expects.VALUE, _) if char not in ",:}]":
                self._begin(_Expects.IN_VALUE, char)
            case _:
                self.status = Status.FAILED

    def _begin(self, expects: _Expects, char: str) -> None:
        self._expects = expects
        self._value = ValueScanner()
        self._token = ""
        self._take_inside(char)

    def _take_inside(self, char: str) -> None:
        taken = self._value.take(char)
        if taken is not Taken.BEHIND:
            self._token += char
            if self._streams_value:
                self._arguments += char
        if taken is not Taken.INSIDE:
            self._end_key() if self._expects is _Expects.IN_KEY else self._end_value()
        if taken is Taken.BEHIND and self.status is Status.OPEN:
            self._take(char)

    @property
    def _streams_value(self) -> bool:
        is_arguments = self._expects is _Expects.IN_VALUE and self._key in ARGUMENT_KEYS
        return is_arguments and self._token.startswith("{") and not self._has_arguments

    def _end_key(self) -> None:
        self._key = str(self._read(""))
        self._expects = _Expects.COLON

    def _end_value(self) -> None:
        streamed, self._expects = self._streams_value, _Expects.COMMA
        if streamed:
            self._has_arguments = True
        elif self._key == NAME_KEY:
            self._end_name(self._read(None))
        elif self._key in ARGUMENT_KEYS and not self._has_arguments:
            self._end_arguments(self._read(None))

    def _end_name(self, value: object) -> None:
        if isinstance(value, str) and value:
            self._name = self._name or value
        else:
            self.status = Status.FAILED

    def _end_arguments(self, value: object) -> None:
        if isinstance(value, str):
            self._arguments = value
        elif value is None:
            self._arguments = NO_ARGUMENTS
        elif not isinstance(value, dict):
            self.status = Status.FAILED
            return
        self._has_arguments = True

    def _read(self, default: object) -> object:
        try:
            return json.loads(self._token, strict=False)
        except (ValueError, RecursionError):
            self.status = Status.FAILED
            return default

    def _end_object(self) -> None:
        is_call = self._name is not None and (self._has_arguments or not self._needs_arguments)
        self.status = Status.DONE if is_call else Status.FAILED
        if is_call and not self._has_arguments:
            self._arguments = NO_ARGUMENTS

    def _note_begin(self) -> None:
        """The call begins once its name and something of its arguments are there, wherever the text was cut."""
        if self._name is not None and self._arguments and self.status is not Status.FAILED:
            self.num_begun = 1

    def _give(self) -> list[Delta]:
        if not self.num_begun or self._name is None:
            return []
        deltas: list[Delta] = [] if self._is_given else [CallBegin(self._call_idx, self._name)]
        self._is_given = True
        if self._arguments:
            deltas.append(CallArguments(self._call_idx, self._arguments))
            self._arguments = ""
        return deltas


class CallList:
    """Reads several tool calls with separators between them, in brackets or not."""

    def __init__(
        self, call_idx: int, *, brackets: str = "[]", separator: str = ",", needs_arguments: bool = False
    ) -> None:
        self.status = Status.OPEN
        self.raw = ""
        self._num_done = 0
        self._call_idx = call_idx
        self._open, self._close = (brackets[0], brackets[1]) if brackets else ("", "")
        self._separator = separator
        self._needs_arguments = needs_arguments
        self._is_open = not self._open
        self._scanner: CallScanner | None = None
        self._wants_call = True

    def feed(self, text: str) -> tuple[list[Delta], str]:
        """Take text up to the end of the list; return the pieces and the text behind it."""
        deltas: list[Delta] = []
        rest = text
        while rest and self.status is Status.OPEN:
            if self._scanner is not None:
                given, rest = self._scanner.feed(rest)
                deltas += given
                self._end_call(self._scanner)
            else:
                rest = self._take_between(rest)
        self.raw += text[: len(text) - len(rest)]
        return deltas, rest

    @property
    def num_begun(self) -> int:
        return self._num_done + (self._scanner.num_begun if self._scanner is not None else 0)

    def _end_call(self, scanner: CallScanner) -> None:
        if scanner.status is Status.FAILED:
            self.status = Status.FAILED
        elif scanner.status is Status.DONE:
            self._num_done += 1
            self._scanner, self._wants_call = None, False

    def _take_between(self, text: str) -> str:
        char, rest = text[0], text[1:]
        if char in WHITE_SPACE:
            return rest
        if not self._is_open:
            self._is_open = char == self._open
            self.status = Status.OPEN if self._is_open else Status.FAILED
            return rest
        if self._wants_call:
            return self._begin_call(text)
        if char == self._separator:
            self._wants_call = True
            return rest
        if char == self._close:
            self.status = Status.DONE
            return rest
        self.status = Status.DONE
        return text

    def _begin_call(self, text: str) -> str:
        if text[0] == self._close and not self.num_begun:
            self.status = Status.DONE
            return text[1:]
        self._scanner = CallScanner(self._call_idx + self.num_begun, needs_arguments=self._needs_arguments)
        return text

"""Tool calls in the text of an answer: behind a marker (Hermes, Qwen, Mistral), or as the whole answer (Llama 3, and
outputs that a schema forced).
"""

from __future__ import annotations

from collections.abc import Callable

from kea.server.parsers.base import (
    CallArguments,
    CallBegin,
    Content,
    Delta,
    Region,
    Status,
    split_safe,
)
from kea.server.parsers.json_values import WHITE_SPACE, CallList, CallScanner, Taken, ValueScanner

CreateRegion = Callable[[int], Region]
"""From the index of its first call to a new region."""

HERMES_BEGIN, HERMES_END = "<tool_call>", "</tool_call>"
MISTRAL_BEGIN = "[TOOL_CALLS]"
LLAMA_BEGIN = "<|python_tag|>"


class MarkedCalls:
    """Content, with a region of tool calls behind every marker. White space around calls is dropped; a region that
    turns out to be no call before anything of it was given is content.
    """

    def __init__(self, mark: str, create_region: CreateRegion) -> None:
        self._mark = mark
        self._create_region = create_region
        self._buffer = ""
        self._region: Region | None = None
        self._num_calls = 0
        self._is_behind_call = False

    def feed(self, text: str) -> list[Delta]:
        self._buffer += text
        deltas: list[Delta] = []
        is_moving = True
        while is_moving:
            given, is_moving = self._take_content() if self._region is None else self._take_region(self._region)
            deltas += given
        return deltas

    def finish(self) -> list[Delta]:
        text, self._buffer = self._buffer, ""
        if self._region is not None:
            text = "" if self._region.num_begun else self._mark + self._region.raw + text
        elif self._is_behind_call:
            text = text.strip()
        return [Content(text)] if text else []

    def _take_content(self) -> tuple[list[Delta], bool]:
        """Give the content before the next marker; return whether a region began there."""
        text = self._buffer.lstrip() if self._is_behind_call else self._buffer
        before, found, behind = text.partition(self._mark)
        if found:
            before, self._buffer = before.rstrip(), behind
            self._region = self._create_region(self._num_calls)
        else:
            before, self._buffer = split_safe(text, [self._mark])
        self._is_behind_call = self._is_behind_call and not before
        return ([Content(before)] if before else []), bool(found)

    def _take_region(self, region: Region) -> tuple[list[Delta], bool]:
        """Let the region take what it can; return whether it ended."""
        deltas, rest = region.feed(self._buffer)
        self._buffer = rest
        if region.status is Status.OPEN:
            return deltas, False
        self._region = None
        self._num_calls += region.num_begun
        if region.num_begun:
            self._is_behind_call = True
        else:
            deltas.append(Content(self._mark + region.raw))
        return deltas, True


class TaggedCall:
    """One call as JSON, then the closing tag (which a model may forget)."""

    def __init__(self, call_idx: int, end: str = HERMES_END) -> None:
        self._scanner = CallScanner(call_idx)
        self._end = end
        self._tail = ""
        self.status = Status.OPEN

    @property
    def raw(self) -> str:
        return self._scanner.raw

    @property
    def num_begun(self) -> int:
        return self._scanner.num_begun

    def feed(self, text: str) -> tuple[list[Delta], str]:
        deltas, rest = self._scanner.feed(text)
        if self._scanner.status is Status.FAILED:
            self.status = Status.FAILED
            return deltas, rest
        if self._scanner.status is Status.OPEN:
            return deltas, ""
        self._tail = (self._tail + rest).lstrip()
        if self._tail.startswith(self._end):
            self.status = Status.DONE
            return deltas, self._tail[len(self._end) :]
        if self._end.startswith(self._tail):
            return deltas, ""
        self.status = Status.DONE
        return deltas, self._tail


class MistralCalls:
    """Either a JSON list of calls, or a name followed by its arguments (`name{...}` and `name[ARGS]{...}`)."""

    def __init__(self, call_idx: int) -> None:
        self._call_idx = call_idx
        self._region: Region | None = None
        self._skipped = ""

    @property
    def status(self) -> Status:
        return Status.OPEN if self._region is None else self._region.status

    @property
    def raw(self) -> str:
        return self._skipped + (self._region.raw if self._region is not None else "")

    @property
    def num_begun(self) -> int:
        return 0 if self._region is None else self._region.num_begun

    def feed(self, text: str) -> tuple[list[Delta], str]:
        if self._region is None:
            start = text.lstrip()
            self._skipped += text[: len(text) - len(start)]
            if not start:
                return [], ""
            text = start
            self._region = CallList(self._call_idx) if start[0] == "[" else NameThenArguments(self._call_idx)
        return self._region.feed(text)


class NameThenArguments:
    """A function's name, then its arguments as a JSON object.

    What stands in brackets between them is no part of either.
    """

    def __init__(self, call_idx: int) -> None:
        self._call_idx = call_idx
        self._head = ""
        self._value = ValueScanner()
        self.raw = ""
        self.num_begun = 0
        self.status = Status.OPEN

    def feed(self, text: str) -> tuple[list[Delta], str]:
        used = 0
        while not self.num_begun and self.status is Status.OPEN and used < len(text):
            self._take_head(text[used])
            used += 1
        begin: list[Delta] = [CallBegin(self._call_idx, self._name)] if self.num_begun and used else []
        if not self.num_begun:
            self.raw += text[:used]
            return [], text[used:]
        start = used - 1 if begin else 0  # the head ended with the first character of the arguments
        arguments, rest = self._take_arguments(text[start:])
        return ([*begin, CallArguments(self._call_idx, arguments)] if arguments else begin), rest

    @property
    def _name(self) -> str:
        return self._head.partition("[")[0].strip()

    def _take_head(self, char: str) -> None:
        if char == "{" and self._name:
            self.num_begun = 1
        elif char.isalnum() or char in "_-.[]" or (char in WHITE_SPACE and self._head):
            self._head += char
        else:
            self.status = Status.FAILED

    def _take_arguments(self, text: str) -> tuple[str, str]:
        for idx, char in enumerate(text, 1):
            if self._value.take(char) is Taken.LAST:
                self.status = Status.DONE
                return text[:idx], text[idx:]
        return text, ""


class LeadingCalls:
    """Llama 3's form: the output begins with a JSON object (after an optional marker), more follow behind
    semicolons.
    """

    def __init__(self, mark: str = LLAMA_BEGIN) -> None:
        self._mark = mark
        self._buffer = ""
        self._calls: MarkedCalls | None = None
        self._is_content = False

    def feed(self, text: str) -> list[Delta]:
        if self._is_content:
            return [Content(text)] if text else []
        if self._calls is not None:
            return self._calls.feed(text)
        self._buffer += text
        return self._decide()

    def finish(self) -> list[Delta]:
        if self._calls is not None:
            return self._calls.finish()
        return [Content(self._buffer)] if self._buffer and not self._is_content else []

    def _decide(self) -> list[Delta]:
        start = self._buffer.lstrip()
        if start.startswith(self._mark):
            return self._begin(self._mark, start[len(self._mark) :])
        if start.startswith("{"):
            return self._begin("", start)
        if self._mark.startswith(start):
            return []
        self._is_content = True
        return [Content(self._buffer)]

    def _begin(self, mark: str, text: str) -> list[Delta]:
        self._calls = FirstRegion(mark, lambda idx: CallList(idx, brackets="", separator=";", needs_arguments=True))
        return self._calls.feed(text)


class FirstRegion(MarkedCalls):
    """One region, from the start of the text; what is behind it is content.

    `mark` is given back where it is no call.
    """

    def __init__(self, mark: str, create_region: CreateRegion) -> None:
        super().__init__(mark, create_region)
        self._region = create_region(0)

    def _take_content(self) -> tuple[list[Delta], bool]:
        text = self._buffer.lstrip() if self._is_behind_call else self._buffer
        self._is_behind_call = self._is_behind_call and not text
        self._buffer = ""
        return ([Content(text)] if text else []), False


class NamedCall:
    """The whole output is the arguments of one function."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_begun = False

    def feed(self, text: str) -> list[Delta]:
        if not text:
            return []
        begin: list[Delta] = [] if self._is_begun else [CallBegin(0, self._name)]
        self._is_begun = True
        return [*begin, CallArguments(0, text)]

    def finish(self) -> list[Delta]:
        return []


def hermes_calls() -> MarkedCalls:
    return MarkedCalls(HERMES_BEGIN, TaggedCall)


def mistral_calls() -> MarkedCalls:
    return MarkedCalls(MISTRAL_BEGIN, MistralCalls)


def forced_calls() -> MarkedCalls:
    """Read the output that a schema forced to be a JSON list of calls."""
    return FirstRegion("", CallList)

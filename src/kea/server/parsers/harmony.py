"""gpt-oss' format: messages in channels, each with a header. Source: the harmony response format (openai/harmony).

`analysis` is reasoning, a message to a function is a tool call, everything else is content.
"""

from __future__ import annotations

import re

from kea.server.parsers.base import CallArguments, CallBegin, Content, Delta, Reasoning, held_len

START, END, MESSAGE, CHANNEL = "<|start|>", "<|end|>", "<|message|>", "<|channel|>"
RETURN, CALL, CONSTRAIN = "<|return|>", "<|call|>", "<|constrain|>"
BOUNDARIES = (START, END, RETURN, CALL, MESSAGE)
FINAL_HEADER = f"{CHANNEL}final{MESSAGE}"

_BOUNDARY = re.compile("|".join(map(re.escape, BOUNDARIES)))
_CHANNEL = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_FUNCTIONS = "functions."


class HarmonyParser:
    """Reads one output, which begins inside a header (behind `<|start|>assistant`), or inside the final message."""

    def __init__(self, *, begins_final: bool = False) -> None:
        self._buffer = ""
        self._header: str | None = None if begins_final else ""
        self._channel = "final"
        self._num_calls = 0
        self._is_call = False
        self._seen: set[type[Delta]] = set()
        self._is_fresh = True

    def feed(self, text: str) -> list[Delta]:
        self._buffer += text
        deltas: list[Delta] = []
        while found := _BOUNDARY.search(self._buffer):
            deltas += self._take(self._buffer[: found.start()])
            deltas += self._cross(found.group())
            self._buffer = self._buffer[found.end() :]
        safe_len = len(self._buffer) - held_len(self._buffer, BOUNDARIES)
        deltas += self._take(self._buffer[:safe_len])
        self._buffer = self._buffer[safe_len:]
        return deltas

    def finish(self) -> list[Delta]:
        deltas = self._take(self._buffer)
        self._buffer = ""
        return [*deltas, *self._end_message()]

    def _take(self, text: str) -> list[Delta]:
        if not text:
            return []
        if self._header is not None:
            self._header += text
            return []
        return self._give(text)

    def _cross(self, mark: str) -> list[Delta]:
        if mark == MESSAGE and self._header is not None:
            return self._begin_message(self._header)
        deltas = self._end_message()
        if mark == START:
            self._header = START
        return deltas

    def _begin_message(self, header: str) -> list[Delta]:
        self._header = None
        self._is_fresh = True
        channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        self._channel = channel.group(1) if channel else "final"
        self._is_call = recipient is not None
        if recipient is None:
            return []
        self._num_calls += 1
        return [CallBegin(self._num_calls - 1, recipient.group(1).removeprefix(_FUNCTIONS))]

    def _end_message(self) -> list[Delta]:
        """End a message.

        A header that never became one, and looks like none, is what a model wrote without the format.
        """
        header, self._header = self._header, ""
        if header and header.strip() and START not in header and CHANNEL not in header:
            self._is_call, self._channel = False, "final"
            return self._give(header)
        return []

    def _give(self, text: str) -> list[Delta]:
        if self._is_call:
            return [CallArguments(self._num_calls - 1, text)]
        kind = Reasoning if self._channel == "analysis" else Content
        if self._is_fresh and kind in self._seen:
            text = "\n" + text
        self._is_fresh = False
        self._seen.add(kind)
        return [kind(text)]

"""The model that is offered: its names, its engine, its tokenizer, its limits. Knows no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from kea.engine.base import Engine
from kea.errors import ContextLengthExceeded, InvalidRequest, NotFound, Unsupported
from kea.server.parsers import OutputFormat

INLINE_CHARS = 20_000
"""Longer texts, and more ids, are tokenised and read on another thread, so that the event loop goes on."""
READ_CHARS = 500_000
"""Up to here a text that cannot fit is tokenised nevertheless, so that its error tells how many tokens it has."""


class Tokenizer(Protocol):
    """What the server needs of `kea.models.tokenizer.Tokenizer`."""

    @property
    def has_chat_template(self) -> bool: ...

    @property
    def supports_tools(self) -> bool: ...

    @property
    def max_token_chars(self) -> int: ...

    def encode(self, text: str, *, special: bool = True) -> list[int]: ...

    def encode_continuation(self, text: str) -> list[int]: ...

    def encode_chat(self, messages: Sequence[dict[str, Any]], **options: Any) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def render_chat(self, messages: Sequence[dict[str, Any]], **options: Any) -> str: ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model under its names, the first of which is the one reported.

    `output_format`: how its outputs are read. `reads`: the options that change what its chat template writes.
    """

    names: tuple[str, ...]
    engine: Engine
    tokenizer: Tokenizer
    created_s: int
    output_format: OutputFormat
    reads: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def max_model_len(self) -> int:
        return self.engine.info.max_model_len

    def check_name(self, name: str | None) -> None:
        """Raise `NotFound` for a model that is not offered here; no name means the one that is."""
        if name is not None and name not in self.names:
            raise NotFound(
                f"The model {name[:200]!r} is not served here; there is {', '.join(map(repr, self.names))}.",
                param="model",
                hint="Adapters (LoRA) are not supported.",
            )

    def check_chars(self, num_chars: int, param: str) -> None:
        """Raise `ContextLengthExceeded` for a text that could not fit into the context whatever it says.

        So that it is not tokenised first: 30 MB take most of a minute and gigabytes.
        """
        most = self.max_model_len * self.tokenizer.max_token_chars
        if num_chars > max(most, READ_CHARS):
            raise ContextLengthExceeded(
                f"{param} has {num_chars} characters; the model's context of {self.max_model_len} tokens holds no more "
                f"than {most}.",
                param=param,
            )

    async def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """Return the ids of a text."""
        encode = partial(self.tokenizer.encode, text, special=special)
        return tuple(encode() if len(text) <= INLINE_CHARS else await asyncio.to_thread(encode))

    async def encode_chat(self, messages: Sequence[dict[str, Any]], **options: Any) -> tuple[int, ...]:
        """Return the ids of a conversation as the model's template writes it.

        Raises `InvalidRequest`, `Unsupported`.
        """
        if not self.tokenizer.has_chat_template:
            raise Unsupported(
                f"{self.name!r} has no chat template, so it cannot read messages.",
                hint="Send a plain prompt to /v1/completions, or serve a chat model.",
                param="messages",
            )
        encode = partial(self.tokenizer.encode_chat, messages, **options)
        is_short = count_chars([*messages, options]) <= INLINE_CHARS
        return tuple(encode() if is_short else await asyncio.to_thread(encode))

    async def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included."""
        decode = partial(self.tokenizer.decode, token_ids, skip_special=False)
        return decode() if len(token_ids) <= INLINE_CHARS else await asyncio.to_thread(decode)

    def check_ids(self, token_ids: Sequence[int], param: str) -> None:
        """Raise `InvalidRequest` for ids outside the vocabulary."""
        vocab_size = self.engine.info.vocab_size
        wrong = next((token_id for token_id in token_ids if not 0 <= token_id < vocab_size), None)
        if wrong is not None:
            raise InvalidRequest(
                f"{param} holds the token id {wrong}; ids are from 0 to {vocab_size - 1}.", param=param
            )

    def output_room(self, prompt_len: int, max_tokens: int | None, *, names: tuple[str, str]) -> int:
        """Return how many tokens the output may have: `max_tokens`, or (None) all that fit.

        `names` are those of the prompt's and the limit's fields. Raises `ContextLengthExceeded`, or `InvalidRequest`
        for an empty prompt.
        """
        prompt_name, limit_name = names
        if not prompt_len:
            raise InvalidRequest(f"{prompt_name} has no tokens; at least one is needed.", param=prompt_name)
        room = self.max_model_len - prompt_len
        if room < 1:
            raise ContextLengthExceeded(
                f"{prompt_name} has {prompt_len} tokens, which leaves no room for an output: the model's context holds "
                f"{self.max_model_len}.",
                param=prompt_name,
            )
        if max_tokens is not None and max_tokens > room:
            raise ContextLengthExceeded(
                f"{prompt_name} has {prompt_len} tokens and {limit_name} is {max_tokens}; the model's context holds "
                f"{self.max_model_len}, so {limit_name} may be at most {room}.",
                param=limit_name,
            )
        return room if max_tokens is None else max_tokens

    def check_capability(self, *, has_it: bool, param: str) -> None:
        """Raise `Unsupported` where the engine lacks what a field needs."""
        if not has_it:
            raise Unsupported(f"{param}: this engine ({self.engine.info.backend}) does not support it.", param=param)


def count_chars(value: object) -> int:
    """Return how many characters of text a value holds, at any depth: messages with their calls, tools."""
    num_chars, pending = 0, [value]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            num_chars += len(part)
        elif isinstance(part, Mapping):
            pending += part.values()
        elif isinstance(part, list | tuple):
            pending += part
    return num_chars

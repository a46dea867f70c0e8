"""Messages as they cross to another process: pieces of text, which nearly all of them are, as plain tuples.

Pickling one as the object that it is takes twenty times as long, on both sides. Knows no channel.
"""

from __future__ import annotations

from collections.abc import Sequence

from kea.cluster.base import Message
from kea.engine.base import Generated
from kea.types import Chunk

Packed = Message | tuple[int, tuple[int, ...], str]


def pack(messages: Sequence[Message]) -> list[Packed]:
    """Return the messages in a form that is cheap to pickle; what is more than tokens and text stays as it is."""
    packed: list[Packed] = []
    for message in messages:
        if isinstance(message, Generated):
            generation_id, chunk = message
            if chunk.finish is None and chunk.prompt_logprobs is None and not chunk.logprobs:
                packed.append((generation_id, chunk.token_ids, chunk.text))
                continue
        packed.append(message)
    return packed


def unpack(packed: Sequence[Packed]) -> list[Message]:
    """Return the messages that were packed."""
    messages: list[Message] = []
    for message in packed:
        if isinstance(message, tuple) and not isinstance(message, Generated):
            generation_id, token_ids, text = message
            messages.append(Generated(generation_id, Chunk(token_ids, text)))
        else:
            messages.append(message)
    return messages

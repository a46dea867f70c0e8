"""Tokens as bytes: what each token id adds to the text, read from a tokenizer's decoder rules.

Two kinds of decoders cover nearly all language models: byte-level BPE, and SentencePiece pieces with byte fallback. For
others `try_read_vocabulary` returns None. Knows no torch, no models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

PIECE_STEPS = ("Replace", "ByteFallback", "Fuse", "Strip")
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The bytes of every token id.

    At the start of a sequence a token gives its bytes in `first` where it has some there, and `num_stripped` leading
    spaces of the text go: the tokenizer had inserted them.
    """

    pieces: dict[int, bytes]
    first: dict[int, bytes] = field(default_factory=dict)
    num_stripped: int = 0


def try_read_vocabulary(tokens: dict[int, str], decoder: dict[str, Any] | None) -> Vocabulary | None:
    """Return the bytes of `tokens` under the `decoder` of a tokenizer.json; None for a decoder of another kind."""
    steps = _steps(decoder)
    kinds = [str(step["type"]) for step in steps]
    if kinds == ["ByteLevel"]:
        return Vocabulary({index: _byte_level(token) for index, token in tokens.items()})
    if kinds[:1] == ["Metaspace"] and set(kinds[1:]) <= {"ByteFallback", "Fuse"}:
        return _metaspace(tokens, steps[0], "ByteFallback" in kinds)
    in_order = [kind for kind in PIECE_STEPS if kind in kinds]
    if kinds and kinds == in_order and ("Strip" not in kinds or "Fuse" in kinds):
        return _pieces(tokens, {str(step["type"]): step for step in steps})
    return None


def _steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _byte_level(token: str) -> bytes:
    """Undo GPT-2's mapping of bytes to printable characters; an added token with other characters is its own text."""
    try:
        return bytes(BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:
        return token.encode()


def _byte_characters() -> dict[str, int]:
    """Return GPT-2's printable character of each byte, inverted: printable bytes stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_characters()


def _metaspace(tokens: dict[int, str], step: dict[str, Any], has_fallback: bool) -> Vocabulary:
    mark = str(step["replacement"])
    pieces = {index: _piece(token, mark, " ", has_fallback) for index, token in tokens.items()}
    if step.get("prepend_scheme", "always") == "never":
        return Vocabulary(pieces)
    return Vocabulary(pieces, {index: _piece(token, mark, "", has_fallback) for index, token in tokens.items()})


def _pieces(tokens: dict[int, str], steps: dict[str, dict[str, Any]]) -> Vocabulary | None:
    replace = steps.get("Replace", {"pattern": {"String": " "}, "content": " "})
    strip = steps.get("Strip", {"content": " ", "start": 0, "stop": 0})
    mark = replace["pattern"].get("String")
    if mark is None or strip["content"] != " " or strip["stop"] != 0:
        return None
    has_fallback = "ByteFallback" in steps
    pieces = {index: _piece(token, mark, replace["content"], has_fallback) for index, token in tokens.items()}
    return Vocabulary(pieces, num_stripped=int(strip["start"]))


def _piece(token: str, mark: str, content: str, has_fallback: bool) -> bytes:
    matched = BYTE_TOKEN.fullmatch(token) if has_fallback else None
    return bytes([int(matched[1], 16)]) if matched else token.replace(mark, content).encode()

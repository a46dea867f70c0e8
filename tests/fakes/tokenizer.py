"""A tokenizer without a vocabulary file: one token per character, plus chosen longer pieces. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

BOS_ID = 0x110000
EOS_ID = 0x110001
FIRST_PIECE_ID = 0x110002


class FakeTokenizer:
    """Same methods as `kea.models.tokenizer.Tokenizer`; a character's id is its code point.

    `pieces` are multi-character tokens, matched longest first, so that a stop string may lie inside a token.
    """

    def __init__(self, pieces: Sequence[str] = (), *, chat: bool = True) -> None:
        self.pieces = tuple(sorted(pieces, key=len, reverse=True))
        self.has_chat_template = chat
        self.eos_token_ids: tuple[int, ...] = (EOS_ID,)
        self.vocab_size = FIRST_PIECE_ID + len(self.pieces)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Return the ids of `text`, after the begin-of-sequence token when `special`."""
        ids = list(self._encode_pieces(text)) if self.pieces else [ord(char) for char in text]
        return [BOS_ID, *ids] if special else ids

    def encode_continuation(self, text: str) -> list[int]:
        """Return the ids of text that follows other tokens: no begin-of-sequence token."""
        return self.encode(text, special=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; begin and end of sequence have none."""
        return "".join(self._text_of(token_id) for token_id in ids)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> str:
        """Render turns as `<role>content<end>`, contents stripped, as many real templates strip them."""
        turns = [f"<{turn['role']}>{str(turn['content']).strip()}<end>" for turn in messages]
        header = [f"<tools>{[tool['function']['name'] for tool in tools]}<end>"] if tools else []
        return "".join(header + turns) + ("<assistant>" if add_generation_prompt else "")

    def _encode_pieces(self, text: str) -> Iterator[int]:
        start = 0
        while start < len(text):
            piece = next((piece for piece in self.pieces if text.startswith(piece, start)), None)
            yield ord(text[start]) if piece is None else FIRST_PIECE_ID + self.pieces.index(piece)
            start += len(piece or text[start])

    def _text_of(self, token_id: int) -> str:
        if token_id >= FIRST_PIECE_ID:
            return self.pieces[token_id - FIRST_PIECE_ID]
        return "" if token_id in (BOS_ID, EOS_ID) else chr(token_id)

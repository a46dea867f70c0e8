"""A tokenizer without a vocabulary file: one token per character, plus chosen longer pieces. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kea.models.chat import ChatTemplate
from kea.models.guard import Span, SpecialTokens, pieces

BOS_ID = 0x110000
EOS_ID = 0x110001
FIRST_PIECE_ID = 0x110002


class FakeTokenizer:
    """Same methods as `kea.models.tokenizer.Tokenizer`; a character's id is its code point.

    `pieces` are multi-character tokens, matched longest first, so that a stop string may lie inside a token; `special`
    are such tokens that become characters inside literal spans.
    """

    def __init__(self, pieces: Sequence[str] = (), *, chat: bool = True, special: Sequence[str] = ()) -> None:
        self.pieces = tuple(sorted(pieces, key=len, reverse=True))
        self.has_chat_template = chat
        self.eos_token_ids: tuple[int, ...] = (EOS_ID,)
        self.vocab_size = FIRST_PIECE_ID + len(self.pieces) + len(special)
        first_id = FIRST_PIECE_ID + len(self.pieces)
        self._special = SpecialTokens({text: first_id + idx for idx, text in enumerate(special)})
        self.chat = ChatTemplate(_Backend(self), self._special)

    @property
    def max_token_chars(self) -> int:
        return max(map(len, (" ", *self.pieces, *self._special.ids)))

    def encode(
        self, text: str, *, special: bool = True, allow_special: bool = True, literal: Sequence[Span] = ()
    ) -> list[int]:
        """Return the ids of `text`, after the begin-of-sequence token when `special`."""
        spans = literal if allow_special else [(0, len(text))]
        ids: list[int] = []
        for piece in pieces(text, self._special, spans):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self._encode_pieces(piece) if self.pieces else [ord(char) for char in piece]
        return [BOS_ID, *ids] if special else ids

    def encode_continuation(self, text: str, *, allow_special: bool = True, literal: Sequence[Span] = ()) -> list[int]:
        """Return the ids of text that follows other tokens: no begin-of-sequence token."""
        return self.encode(text, special=False, allow_special=allow_special, literal=literal)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
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
        if token_id < BOS_ID:
            return chr(token_id)
        texts = ("", "", *self.pieces, *self._special.ids)
        return texts[token_id - BOS_ID]


class _Backend:
    """What `ChatTemplate` asks of transformers' tokenizer, answered by the fake's own template."""

    def __init__(self, tokenizer: FakeTokenizer) -> None:
        self._tokenizer = tokenizer
        self.chat_template = "fake" if tokenizer.has_chat_template else None

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        return self._tokenizer.render_chat(messages, **options)

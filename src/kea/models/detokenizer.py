"""Token ids to text, piece by piece. Owns what has arrived but is not yet a whole character.

Time per token does not grow with the output. Knows no torch, no models, no requests.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from kea.models.vocabulary import Vocabulary

REPLACEMENT = "\ufffd"
MAX_HELD_TOKENS = 8
CONTEXT_TOKENS = 6


class Decoder(Protocol):
    """Turns the ids of one sequence into text as they come; `flush` ends the sequence."""

    @property
    def is_whole(self) -> bool: ...

    @property
    def is_plain(self) -> bool: ...

    def try_text(self, token_id: int) -> str | None: ...

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class ByteDecoder:
    """Decodes by the bytes of each token, which is exact for every split of a character over tokens.

    Bytes that are no UTF-8 become one replacement character per maximal ill-formed part (Unicode 15, section 3.9).
    """

    __slots__ = ("_is_first", "_num_to_strip", "_rest", "_vocabulary")

    def __init__(self, vocabulary: Vocabulary, *, at_start: bool) -> None:
        self._vocabulary = vocabulary
        self._is_first = at_start
        self._num_to_strip = vocabulary.num_stripped if at_start else 0
        self._rest = b""  # the beginning of a character

    @property
    def is_whole(self) -> bool:
        return not self._rest

    @property
    def is_plain(self) -> bool:
        return not (self._is_first or self._num_to_strip or self._rest)

    def try_text(self, token_id: int) -> str | None:
        try:
            return self._vocabulary.pieces.get(token_id, b"").decode()
        except UnicodeDecodeError:
            return None

    def push(self, token_id: int) -> str:
        piece = self._vocabulary.pieces.get(token_id, b"")
        if self.is_plain and piece.isascii():  # as nearly always
            return piece.decode()
        if self._is_first:
            self._is_first = False
            piece = self._vocabulary.first.get(token_id, piece)
        while self._num_to_strip and piece:
            if not piece.startswith(b" "):
                self._num_to_strip = 0
                break
            piece = piece[1:]
            self._num_to_strip -= 1
        return self._decode(piece)

    def flush(self) -> str:
        return self._decode(b"", is_last=True)

    def _decode(self, piece: bytes, *, is_last: bool = False) -> str:
        piece = self._rest + piece
        text, num_read = codecs.utf_8_decode(piece, "replace", is_last)
        self._rest = piece[num_read:]
        return text


class WindowDecoder:
    """Decodes by a tokenizer's own decode over a short window, for tokenizers whose decoder is not known as bytes.

    A text that ends in a replacement character is held back, for at most `MAX_HELD_TOKENS` tokens.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], preceding: Sequence[int]) -> None:
        self._decode = decode
        self._window = list(preceding[-CONTEXT_TOKENS:])
        self._num_read = len(self._window)

    @property
    def is_whole(self) -> bool:
        return self._num_read == len(self._window)

    @property
    def is_plain(self) -> bool:
        return False  # what a token adds may depend on those before it

    def try_text(self, token_id: int) -> str | None:
        return None

    def push(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._unread()
        is_whole = bool(text) and not text.endswith(REPLACEMENT)
        if not is_whole and len(self._window) - self._num_read < MAX_HELD_TOKENS:
            return ""
        return self._take(text)

    def flush(self) -> str:
        return self._take(self._unread())

    def _unread(self) -> str:
        return self._decode(self._window)[len(self._decode(self._window[: self._num_read])) :]

    def _take(self, text: str) -> str:
        self._window = self._window[-CONTEXT_TOKENS:]
        self._num_read = len(self._window)
        return text


class Detokenizer:
    """The text of one output, as its tokens come. Made by `Tokenizer.create_detokenizer`, one per generation.

    No replacement character is given out for a character that is still incomplete; `flush` gives what never became
    whole.
    """

    __slots__ = ("_decoder", "_skipped")

    def __init__(self, decoder: Decoder, skipped: Collection[int]) -> None:
        self._decoder = decoder
        self._skipped = skipped

    @property
    def is_whole(self) -> bool:
        """Whether the text given out so far is all that the tokens hold: no character is still incomplete."""
        return self._decoder.is_whole

    @property
    def is_plain(self) -> bool:
        """Whether tokens of which `try_text` knows the text add it and change nothing: they need not be pushed."""
        return self._decoder.is_plain

    def try_text(self, token_id: int) -> str | None:
        """Return what a token adds to a text that is plain; None where that depends on other tokens."""
        return "" if token_id in self._skipped else self._decoder.try_text(token_id)

    def push(self, token_ids: Sequence[int]) -> str:
        """Add tokens; return the text that became certain."""
        if len(token_ids) == 1:  # as nearly always
            return "" if token_ids[0] in self._skipped else self._decoder.push(token_ids[0])
        return "".join(self._decoder.push(index) for index in token_ids if index not in self._skipped)

    def flush(self) -> str:
        """End the output; return what was held back."""
        return self._decoder.flush()

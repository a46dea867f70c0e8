"""A small byte-level vocabulary for grammars: every byte, some words, two end tokens. Made in memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

WORDS = ("true", "false", "null", '{"', '":', '", "', '"}', "name", "age", "yes", "no", "123", "  ", "abc", "\xe9")
ENDS = ("<end>", "<turn>")


@dataclass(frozen=True)
class SmallVocabulary:
    """Fulfils `GrammarTokenizer`. `pieces`: the bytes of each token; end tokens have none."""

    pieces: tuple[bytes, ...]
    eos_token_ids: tuple[int, ...]

    @cached_property
    def tokenizer_json(self) -> str:
        """The vocabulary in the format of tokenizer.json."""
        tokens = [_spell(piece) for piece in self.pieces[: -len(ENDS)]]
        backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens(list(ENDS))
        return str(backend.to_str())

    def text(self, token_ids: list[int]) -> str:
        """Return the text of the tokens; end tokens have none."""
        return b"".join(self.pieces[token_id] for token_id in token_ids).decode()


def create_vocabulary() -> SmallVocabulary:
    """Return the vocabulary: bytes first, then words, then the end tokens."""
    pieces = [bytes([value]) for value in range(256)] + [word.encode() for word in WORDS]
    ends = tuple(range(len(pieces), len(pieces) + len(ENDS)))
    return SmallVocabulary((*pieces, *(b"" for _ in ENDS)), ends)


def _spell(piece: bytes) -> str:
    """Return a token's bytes in the alphabet of byte-level tokenizers (GPT-2)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = {value: 256 + index for index, value in enumerate(v for v in range(256) if v not in plain)}
    return "".join(chr(shifted.get(value, value)) for value in piece)

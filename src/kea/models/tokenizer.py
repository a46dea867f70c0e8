"""Text to token ids and back. Owns one loaded tokenizer; safe to use from several threads.

Rests on the tokenizers library through transformers' AutoTokenizer, which is imported when one is loaded of which there
is no note (its import also imports torch where torch is installed). Knows no models, no requests.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from kea.errors import Unsupported
from kea.models.chat import ChatTemplate, check_syntax
from kea.models.detokenizer import ByteDecoder, Decoder, Detokenizer, WindowDecoder
from kea.models.guard import Span, SpecialTokens, pieces
from kea.models.noted_tokenizer import KIND as NOTE_KIND
from kea.models.noted_tokenizer import NotedTokenizer, note_tokenizer
from kea.models.notes import Notes
from kea.models.source import eos_ids, failing_as_load_error, resolve_source, try_read_generation_config
from kea.models.vocabulary import Vocabulary, try_read_vocabulary

# What may stand before a text so that no prefix space is inserted before the text itself. One works where it becomes
# tokens of its own, which is checked each time.
SENTINELS = ("\n", "\x02", ".", "0", "a", "\u25a0")
PREFIX_PROBES = ("a", "A", "1", ".")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


class Tokenizer:
    """A tokenizer. `eos_token_ids` are those of the tokenizer and of the generation config beside it.

    `chat` renders messages. In all methods `special` says whether the tokenizer adds its own special tokens (such as
    the beginning of the sequence); `literal` lists character spans, and `allow_special=False` means the whole text, in
    which the text of a special token stays text and cannot become the control token.
    """

    def __init__(self, tokenizer: Any, extra_eos_ids: Iterable[int] = ()) -> None:
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise Unsupported(f"The tokenizer {type(tokenizer).__name__} has no tokenizer.json form.", param="model")
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        own = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
        self.eos_token_ids: tuple[int, ...] = tuple(dict.fromkeys([*own, *extra_eos_ids]))
        self.bos_token_id: int | None = tokenizer.bos_token_id
        self.vocab_size: int = self._backend.get_vocab_size(with_added_tokens=True)
        added = self._backend.get_added_tokens_decoder().items()
        self._special = SpecialTokens({token.content: index for index, token in added if token.special})
        self.special_token_ids = frozenset(self._special.ids.values())
        self.chat = ChatTemplate(tokenizer, self._special)

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        chat_template: str | None = None,
        notes: Notes | None = None,
    ) -> Tokenizer:
        """Load from a directory or the hub; `ModelLoadFailed` with the reason.

        `chat_template` stands in place of the model's own; raises `InvalidRequest` where it cannot be parsed. `notes`:
        as far as they go, transformers is imported only when a chat is first rendered.
        """
        source = resolve_source(name_or_path, TOKENIZER_FILES, revision=revision)
        with failing_as_load_error(source, "the tokenizer"):
            noting = None if notes is None or chat_template is not None else notes.try_of(source)
            note = None if noting is None else noting.try_read(NOTE_KIND)
            if note is not None:
                noted = NotedTokenizer(note, lambda: _load_whole(source, revision))
                return cls(noted, noted.more_eos_ids)
            tokenizer = _load_whole(source, revision)
            more_eos_ids = eos_ids(try_read_generation_config(source, revision))
            if chat_template is not None:
                tokenizer.chat_template = chat_template
                check_syntax(tokenizer)
            elif noting is not None:
                note_tokenizer(tokenizer, more_eos_ids, noting)
            return cls(tokenizer, more_eos_ids)

    def encode(
        self, text: str, *, special: bool = True, allow_special: bool = True, literal: Sequence[Span] = ()
    ) -> list[int]:
        """Return the token ids of a text that begins a sequence."""
        spans = literal if allow_special else [(0, len(text))]
        if not self._special.occurs_in(text, spans):
            return _ids(self._backend, text, special=special)
        return self._encode_guarded(text, spans, special)

    def encode_continuation(self, text: str, *, allow_special: bool = True, literal: Sequence[Span] = ()) -> list[int]:
        """Return the token ids of a text that follows other tokens: no beginning of sequence, no inserted space."""
        literal = literal if allow_special else [(0, len(text))]
        if not text or not self._inserts_prefix:
            return self.encode(text, special=False, literal=literal)
        for sentinel in SENTINELS:
            lead = self.encode(sentinel, special=False)
            shifted = [(start + len(sentinel), stop + len(sentinel)) for start, stop in literal]
            ids = self.encode(sentinel + text, special=False, literal=shifted)
            if ids[: len(lead)] == lead:
                return ids[len(lead) :]
        raise Unsupported(
            "This tokenizer inserts a space before a text in a way that cannot be undone for this text.", param="model"
        )

    def encode_chat(self, messages: Sequence[dict[str, Any]], **options: Any) -> list[int]:
        """Render messages by the chat template (options as in `ChatTemplate.render`) and return their token ids.

        Only the template's own special tokens become control tokens; those spelled out in messages or tools stay text.
        """
        text, literal = self.chat.render_guarded(messages, **options)
        return self.encode(text, special=False, literal=literal)

    def render_chat(self, messages: Sequence[dict[str, Any]], **options: Any) -> str:
        """Render messages by the chat template; options as in `ChatTemplate.render`."""
        return self.chat.render(messages, **options)

    @property
    def has_chat_template(self) -> bool:
        return self.chat.exists

    @property
    def supports_tools(self) -> bool:
        return self.chat.supports_tools

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of a whole sequence."""
        detokenizer = self.create_detokenizer(skip_special=skip_special)
        return detokenizer.push(token_ids) + detokenizer.flush()

    def create_detokenizer(self, preceding: Sequence[int] = (), *, skip_special: bool = True) -> Detokenizer:
        """Return the detokenizer of an output that follows the tokens `preceding` of its context."""
        skipped = self.special_token_ids if skip_special else frozenset[int]()
        decoder: Decoder
        if self._vocabulary is not None:
            decoder = ByteDecoder(self._vocabulary, at_start=all(index in skipped for index in preceding))
        else:
            decoder = WindowDecoder(self._decode_whole, [index for index in preceding[-64:] if index not in skipped])
        return Detokenizer(decoder, skipped)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token adds in the middle of a text."""
        if self._vocabulary is None:
            return self._decode_whole([token_id]).encode()
        return self._vocabulary.pieces.get(token_id, b"")

    @cached_property
    def tokenizer_json(self) -> str:
        """The tokenizer in the format of tokenizer.json."""
        return str(self._backend.to_str())

    @cached_property
    def max_token_chars(self) -> int:
        """The most characters that one token stands for, at least; a text of more than so many for each token of a
        context cannot fit into it, whatever it says. No bound where an unknown word of any length is one token."""
        if _hides_unknown_words(json.loads(self.tokenizer_json)["model"]):
            return sys.maxsize
        tokens = self._backend.get_vocab(with_added_tokens=True)
        own = self._vocabulary.pieces.values() if self._vocabulary is not None else ()
        return max(1, *map(len, tokens), *map(len, own))

    @cached_property
    def _vocabulary(self) -> Vocabulary | None:
        tokens = {index: token for token, index in self._backend.get_vocab(with_added_tokens=True).items()}
        decoder = self._backend.decoder
        return try_read_vocabulary(tokens, None if decoder is None else json.loads(decoder.__getstate__()))

    @cached_property
    def _literal_backend(self) -> Any:
        """A copy that reads the text of special tokens as text."""
        from tokenizers import Tokenizer as Backend

        copy = Backend.from_str(self.tokenizer_json)
        copy.encode_special_tokens = True
        return copy

    @cached_property
    def _inserts_prefix(self) -> bool:
        lead = len(self.encode(SENTINELS[0], special=False))
        return any(
            self.encode(SENTINELS[0] + text, special=False)[lead:] != self.encode(text, special=False)
            for text in PREFIX_PROBES
        )

    def _decode_whole(self, token_ids: Sequence[int]) -> str:
        return str(self._backend.decode(list(token_ids), skip_special_tokens=False))

    def _encode_guarded(self, text: str, literal: Sequence[Span], special: bool) -> list[int]:
        """Encode the stretches between the special tokens outside `literal` one by one, where none is special."""
        ids: list[int] = []
        for piece in pieces(text, self._special, literal):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += _ids(self._literal_backend, piece, special=False)
        before, after = self._added_around() if special else ([], [])
        return before + ids + after

    def _added_around(self) -> tuple[list[int], list[int]]:
        """Return the special tokens that the tokenizer puts before and after a text."""
        plain = self._backend.encode(PREFIX_PROBES[0], add_special_tokens=False).ids
        whole = self._backend.encode(PREFIX_PROBES[0], add_special_tokens=True).ids
        start = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
        return whole[:start], whole[start + len(plain) :]


def _load_whole(source: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)


def _hides_unknown_words(model: dict[str, Any]) -> bool:
    """Whether a tokenizer's model writes one token for several characters that it does not know."""
    if model.get("byte_fallback"):
        return False
    if model["type"] == "BPE":
        return bool(model.get("fuse_unk")) and model.get("unk_token") is not None
    return model.get("unk_token") is not None or model.get("unk_id") is not None


def _ids(backend: Any, text: str, *, special: bool) -> list[int]:
    """Return the ids of a text. As a batch of one: only so are other threads let run meanwhile, and it is faster."""
    ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=special)[0].ids
    return ids

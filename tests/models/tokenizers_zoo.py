"""Tiny tokenizers of the kinds in use, built with the tokenizers library: no files, no network."""

from __future__ import annotations

from functools import cache
from typing import Any

from kea.models import Tokenizer
from tests.conftest import SHARED

STORIES = SHARED / "models" / "stories260k"
CORPUS = ["Once upon a time, there was a naïve cat. 你好世界 🙂🙃 hello hello the the they're 12 123"] * 4
SPECIAL = ["<s>", "</s>", "<|im_end|>", "<\uff5cbegin▁of\uff5c>"]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% if tools %}[tools]{{ tools | tojson }}{% endif %}"
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('Unknown role ' + message.role) }}"
    "{% endif %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _wrap(backend: Any, **options: Any) -> Tokenizer:
    from transformers import PreTrainedTokenizerFast

    return Tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", **options),
        extra_eos_ids=[2],
    )


def _with_bos(backend: Any) -> Any:
    from tokenizers import processors

    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return backend


@cache
def byte_level() -> Tokenizer:
    """GPT-2's kind, with a chat template and an added token that is not special."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [*SPECIAL, "<|im_start|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("é x", special=False)])
    return _wrap(_with_bos(backend), chat_template=CHAT_TEMPLATE)


@cache
def metaspace(scheme: str) -> Tokenizer:
    """SentencePiece's kind with byte fallback, by the Metaspace pre-tokenizer; `scheme` first, always or never."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Metaspace(prepend_scheme=scheme), decoders.ByteFallback(), decoders.Fuse()]
    )
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<unk>", *SPECIAL, *fallback],
        show_progress=False,
        limit_alphabet=20,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return _wrap(_without_special(backend, fallback))


def _without_special(backend: Any, tokens: list[str]) -> Any:
    """Rebuild with `tokens` as ordinary entries of the vocabulary, as byte tokens are."""
    import json

    from tokenizers import Tokenizer as Backend

    data = json.loads(backend.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] not in tokens]
    return _with_bos(Backend.from_str(json.dumps(data)))


@cache
def word_piece() -> Tokenizer:
    """BERT's kind, whose decoder is not one of bytes."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=["[UNK]", *SPECIAL], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return _wrap(backend)


@cache
def stories() -> Tokenizer:
    return Tokenizer.load(STORIES)


def by_name(name: str) -> Tokenizer:
    kind, _, option = name.partition(":")
    makers: dict[str, Any] = {"byte_level": byte_level, "word_piece": word_piece, "stories": stories}
    return metaspace(option) if kind == "metaspace" else makers[kind]()


METASPACE = ("metaspace:first", "metaspace:always", "metaspace:never")
BY_BYTES = ("byte_level", *METASPACE, *(["stories"] if STORIES.is_dir() else []))
ALL = (*BY_BYTES, "word_piece")

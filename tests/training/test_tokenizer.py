"""The tokenizer gives back every text, copies are the same tokens, and transformers reads it alike."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
from hypothesis import given
from tokenizers import Tokenizer

from training.tokenizer import BOS, SPECIAL_TOKENS, encode, save_tokenizer, token_id, train_tokenizer

SMALL = train_tokenizer(["The ship Tarvik came in 1790."], vocab_size=300)


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    assert SMALL.decode(encode(SMALL, text), skip_special_tokens=False) == text


def test_special_tokens_are_single(tokenizer: Tokenizer) -> None:
    assert [encode(tokenizer, token) for token in SPECIAL_TOKENS] == [[i] for i in range(len(SPECIAL_TOKENS))]


def test_bos_is_added_once_and_only_when_asked(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Rain").ids
    assert ids == [token_id(tokenizer, BOS), *encode(tokenizer, "Rain")]


def test_names_and_digits_are_the_same_tokens_after_space_and_quote(tokenizer: Tokenizer) -> None:
    for copied in ("Tarvik", "1790", "Gra Velmo"):
        alone = encode(tokenizer, copied)
        assert encode(tokenizer, f" {copied}") == encode(tokenizer, " ") + alone
        assert encode(tokenizer, f'"{copied}')[-len(alone) :] == alone


def test_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert len(encode(tokenizer, "90210")) == 5


def test_transformers_reads_it_with_its_chat_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(tokenizer, tmp_path, max_len=1024)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "Passage 1: Rain fell.\nQuestion: Where?\nAnswer:"
    assert loaded(text)["input_ids"] == tokenizer.encode(text).ids
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    written = loaded.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert written == f"<|bos|><|system|>Be brief.<|end|><|user|>{text}<|end|><|assistant|>"

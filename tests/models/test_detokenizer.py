"""Incremental detokenising: pieces add up to the whole, no character is given out in parts, cost does not grow."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kea.models.detokenizer import MAX_HELD_TOKENS, REPLACEMENT, WindowDecoder
from tests.models.tokenizers_zoo import ALL, BY_BYTES, by_name

TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="aé你🙂👩‍👩‍👧 \n.▁<0x>", max_size=40),
    st.sampled_from(["the cat", " the  cat ", "naïve 你好 🙂", "\n\n", "▁", "<s>x</s>", "👩‍👩‍👧‍👦"]),
)
SETTINGS = settings(max_examples=60, deadline=None)


def in_groups(token_ids: list[int], rng: random.Random) -> list[list[int]]:
    groups: list[list[int]] = []
    while token_ids:
        size = rng.randint(1, 4)
        groups.append(token_ids[:size])
        token_ids = token_ids[size:]
    return groups


@pytest.mark.parametrize("name", ALL)
@SETTINGS
@given(seed=st.integers(0, 1 << 30), data=st.data())
def test_pieces_of_any_ids_add_up_to_the_decoding_of_all(name: str, seed: int, data: st.DataObject) -> None:
    tokenizer = by_name(name)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    for skip_special in (True, False):
        detokenizer = tokenizer.create_detokenizer(skip_special=skip_special)
        pieces = [detokenizer.push(group) for group in in_groups(ids, random.Random(seed))]
        assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids, skip_special=skip_special)


@pytest.mark.parametrize("name", ALL)
@SETTINGS
@given(text=TEXTS, cut=st.integers(0, 60))
def test_an_output_is_what_its_tokens_add_to_the_context(name: str, text: str, cut: int) -> None:
    tokenizer = by_name(name)
    ids = tokenizer.encode(text)
    before, after = ids[:cut], ids[cut:]
    detokenizer = tokenizer.create_detokenizer(before)
    added = "".join(detokenizer.push([index]) for index in after) + detokenizer.flush()
    whole, head = tokenizer.decode(ids), tokenizer.decode(before)
    if whole.startswith(head):  # the cut is not inside a character
        assert head + added == whole


@pytest.mark.parametrize("name", BY_BYTES)
@SETTINGS
@given(text=TEXTS.filter(lambda text: REPLACEMENT not in text and "\ufffe" not in text))
def test_no_character_is_given_out_in_parts(name: str, text: str) -> None:
    tokenizer = by_name(name)
    detokenizer = tokenizer.create_detokenizer(skip_special=False)
    for index in tokenizer.encode(text, special=False):
        assert REPLACEMENT not in detokenizer.push([index])
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("name", ALL)
@SETTINGS
@given(text=TEXTS)
def test_decoding_equals_the_tokenizers_own(name: str, text: str) -> None:
    tokenizer = by_name(name)
    for ids in (tokenizer.encode(text), tokenizer.encode(text, special=False)):
        for skip in (True, False):
            assert tokenizer.decode(ids, skip_special=skip) == tokenizer._backend.decode(ids, skip_special_tokens=skip)


@SETTINGS
@given(data=st.data())
def test_ill_formed_bytes_decode_as_the_tokenizers_own(data: st.DataObject) -> None:
    tokenizer = by_name("byte_level")
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    assert tokenizer.decode(ids, skip_special=False) == tokenizer._backend.decode(ids, skip_special_tokens=False)


def test_a_character_split_over_tokens_comes_with_its_last_token() -> None:
    tokenizer = by_name("byte_level")
    ids = [
        index
        for byte in "🙂".encode()
        for index in range(tokenizer.vocab_size)
        if tokenizer.token_bytes(index) == bytes([byte])
    ]
    detokenizer = tokenizer.create_detokenizer([5])
    assert [detokenizer.push([index]) for index in ids] == ["", "", "", "🙂"]
    assert detokenizer.push(ids[:2]) == ""
    assert detokenizer.flush() == REPLACEMENT


def test_the_window_stays_short_and_nothing_is_held_for_ever() -> None:
    def decode(ids: Sequence[int]) -> str:
        return REPLACEMENT * len(ids)

    decoder = WindowDecoder(decode, [])
    given_out = 0
    for count in range(1, 1000):
        given_out += len(decoder.push(7))
        assert count - given_out < MAX_HELD_TOKENS
        assert len(decoder._window) < 3 * MAX_HELD_TOKENS

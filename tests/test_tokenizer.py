"""Characters to integers and back."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import data.tokenizer
from data import CharTokenizer, UserError


@given(st.text(st.characters(), max_size=200))
@example("a\ud800\udfff🎭\U0010ffff\0")  # lone surrogates are characters too
def test_ids_are_ranks_of_the_sorted_characters_and_decode_to_the_text(text):
    tokenizer = CharTokenizer(text)
    alphabet = sorted(set(text))
    assert list(tokenizer.chars) == alphabet
    assert tokenizer.vocab_size == len(alphabet)
    assert tokenizer.encode(text).tolist() == [alphabet.index(character) for character in text]
    assert CharTokenizer("".join(tokenizer.chars)).decode(tokenizer.encode(text)) == text  # from the alphabet alone


@pytest.mark.parametrize("chunk", [3, 1000])
def test_encoding_in_chunks_gives_the_same_ids(chunk, monkeypatch):
    text = "héllo wörld 🎭 to be" * 5
    whole = CharTokenizer(text).encode(text)
    monkeypatch.setattr(data.tokenizer, "CHUNK", chunk)
    assert CharTokenizer(text).chars == tuple(sorted(set(text)))
    assert torch.equal(CharTokenizer(text).encode(text), whole)
    with pytest.raises(UserError, match=r"'Z' at position 13 "):
        CharTokenizer(text).encode(text[:13] + "Z")

"""Characters to integers and back."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import data.tokenizer
from data import CharTokenizer, UserError


@given(st.text(st.characters(), max_size=200))
@example("a\ud800\udfff🎭\U0010ffff\0")  # lone surrogates are characters too
def test_ids_are_ranks_among_the_sorted_distinct_characters_and_lead_back_to_the_text(text):
    tokenizer = CharTokenizer(text)
    alphabet = sorted(set(text))
    assert list(tokenizer.chars) == alphabet
    assert tokenizer.vocab_size == len(alphabet)
    assert tokenizer.encode(text).tolist() == [alphabet.index(character) for character in text]
    assert CharTokenizer("".join(tokenizer.chars)).decode(tokenizer.encode(text)) == text  # all that a checkpoint keeps


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_pieces_make_no_difference(chunk, monkeypatch):
    text = "héllo wörld 🎭 to be" * 5
    whole = CharTokenizer(text).encode(text)
    monkeypatch.setattr(data.tokenizer, "CHUNK", chunk)
    assert CharTokenizer(text).chars == tuple(sorted(set(text)))
    assert torch.equal(CharTokenizer(text).encode(text), whole)
    with pytest.raises(UserError, match=r"'Z' at position 13 "):
        CharTokenizer(text).encode(text[:13] + "Z")


@given(st.text("abc", max_size=20), st.sampled_from("dz\0é🎭\U0010ffff"))
def test_an_unknown_character_is_named_with_its_position(known, unknown):
    with pytest.raises(UserError) as error:
        CharTokenizer("abc").encode(known + unknown + "a")
    assert repr(unknown) in str(error.value)
    assert f"position {len(known)} " in str(error.value)


@pytest.mark.parametrize(("distinct", "dtype"), [(65, torch.uint8), (256, torch.uint8), (257, torch.int32)])
def test_ids_are_kept_small(distinct, dtype):
    text = "".join(map(chr, range(distinct)))
    ids = CharTokenizer(text).encode(text)
    assert ids.dtype == dtype
    assert ids.tolist() == list(range(distinct))


@pytest.mark.parametrize("bad", [-1, 3])
def test_decode_refuses_ids_that_are_none(bad):
    with pytest.raises(IndexError):
        CharTokenizer("abc").decode(torch.tensor([0, bad]))

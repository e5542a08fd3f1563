"""Text to ids and back, and the ids that mean the same everywhere."""

import numpy as np
import pytest

from samout_train.data.vocabulary import PAD_ID, SPECIAL_TOKENS, Bytes, Characters, Vocabulary, vocabulary_from

TEXT = "Zoë\nsaid: 𝄞 and\r\n\ttabs"


def test_special_tokens_are_ids_0_to_4_and_padding_is_3() -> None:
    assert SPECIAL_TOKENS == ("<|sos|>", "<|user|>", "<|agent|>", "<|pad|>", "<|history|>")
    assert PAD_ID == 3
    for vocabulary in (Characters(TEXT), Bytes()):
        assert vocabulary.decode(range(5)) == "".join(SPECIAL_TOKENS)
        assert min(vocabulary.encode(TEXT)) >= 5


def test_characters_are_in_code_order_behind_the_special_tokens() -> None:
    vocabulary = Characters("banana b")
    assert vocabulary.encode("abn ").tolist() == [6, 7, 8, 5] and len(vocabulary) == 9


def test_bytes_are_those_of_utf_8() -> None:
    assert Bytes().encode("aë").tolist() == [97 + 5, 0xC3 + 5, 0xAB + 5] and len(Bytes()) == 261


@pytest.mark.parametrize("vocabulary", [Characters(TEXT), Bytes()])
def test_text_comes_back_whole_also_from_a_saved_vocabulary(vocabulary: Vocabulary) -> None:
    again = vocabulary_from(vocabulary.state_dict())
    ids = vocabulary.encode(TEXT)
    assert again.decode(ids.tolist()) == TEXT
    assert np.array_equal(again.encode(TEXT), ids)
    assert vocabulary.token_bytes()[ids].sum() == len(TEXT.encode())


def test_half_a_character_is_shown_as_such() -> None:
    assert Bytes().decode([0xC3 + 5]) == "\ufffd"


@pytest.mark.parametrize("stranger", ["x", "é", "𝄢"])
def test_a_character_that_is_not_in_the_vocabulary_is_named_with_its_place(stranger: str) -> None:
    with pytest.raises(ValueError, match=f"{stranger!r} at position 3"):
        Characters(TEXT).encode("and" + stranger)

"""Text to ids and back, and the ids that mean the same everywhere."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from samout_train.data import (
    PAD_ID,
    SPECIAL_TOKENS,
    Bytes,
    Characters,
    Vocabulary,
    read_published_vocabulary,
    read_vocabulary_file,
    vocabulary_from,
)
from samout_train.data.vocabulary.bpe import BytePairs
from samout_train.data.vocabulary.choice import VocabularyChoice

TEXT = "Zoë\nsaid: 𝄞 and\r\n\ttabs  and the   sands, and <|user|> a band's hand.\n\n  <|pad|>"
VOCABULARIES = {
    "characters": lambda: Characters.of_text([TEXT]),
    "bytes": Bytes,
    "bpe": lambda: BytePairs.of_text([TEXT] * 5, 280),
}


@pytest.fixture(params=list(VOCABULARIES))
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    build: Callable[[], Vocabulary] = VOCABULARIES[request.param]
    return build()


def test_special_tokens_are_ids_0_to_4_and_padding_is_3(vocabulary: Vocabulary) -> None:
    assert SPECIAL_TOKENS == ("<|sos|>", "<|user|>", "<|agent|>", "<|pad|>", "<|history|>")
    assert PAD_ID == 3
    assert vocabulary.decode(range(5)) == "".join(SPECIAL_TOKENS)
    assert vocabulary.token_bytes()[:5].tolist() == [0] * 5


def test_names_of_special_tokens_in_a_text_are_text(vocabulary: Vocabulary) -> None:
    assert min(vocabulary.encode(TEXT)) >= 5


def test_text_comes_back_whole_also_from_a_saved_vocabulary(vocabulary: Vocabulary) -> None:
    again = vocabulary_from(vocabulary.state_dict())
    ids = vocabulary.encode(TEXT)
    assert again.decode(ids.tolist()) == TEXT
    assert np.array_equal(again.encode(TEXT), ids) and len(again) == len(vocabulary) > ids.max()
    assert vocabulary.token_bytes()[ids].sum() == len(TEXT.encode())
    assert vocabulary.encode("").shape == (0,)


def test_characters_are_in_code_order_behind_the_special_tokens() -> None:
    vocabulary = Characters.of_text(["banana", " b"])
    assert vocabulary.encode("abn ").tolist() == [6, 7, 8, 5] and len(vocabulary) == 9


def test_bytes_are_those_of_utf_8() -> None:
    assert Bytes().encode("aë").tolist() == [97 + 5, 0xC3 + 5, 0xAB + 5] and len(Bytes()) == 261


def test_pairs_that_are_found_often_become_one_id() -> None:
    vocabulary = BytePairs.of_text(["abab abab abab xy"], 263)
    # The special tokens, 256 bytes, then two pairs: ab, and abab or " ab".
    assert len(vocabulary) == 263
    assert len(vocabulary.encode("abab")) < 4 and len(vocabulary.encode("xy")) == 2
    assert vocabulary.state_dict() == BytePairs.of_text(["abab abab abab xy"], 263).state_dict()


def test_a_short_text_gives_as_many_pairs_as_there_are() -> None:
    assert len(BytePairs.of_text(["ab"], 4096)) == 262


def test_a_long_text_is_encoded_in_parts_as_it_is_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = BytePairs.of_text([TEXT] * 5, 300)
    text = (TEXT + "\x1c!\u00a0 \x85?\n\n \n") * 2000
    whole = vocabulary._tokenizer.encode(text, add_special_tokens=False).ids
    assert vocabulary.encode(text).tolist() == whole


def test_half_a_character_is_shown_as_such() -> None:
    assert Bytes().decode([0xC3 + 5]) == "\ufffd"


@pytest.mark.parametrize("stranger", ["x", "é", "𝄢"])
def test_a_character_that_is_not_in_the_vocabulary_is_named_with_its_place(stranger: str) -> None:
    vocabulary = Characters.of_text(["and b"])
    with pytest.raises(ValueError, match=f"{stranger!r} at position 3"):
        vocabulary.encode("and" + stranger)
    assert vocabulary.encode(f"a{stranger}b", unknown_id=PAD_ID).tolist() == [6, 3, 7]


@pytest.mark.parametrize(
    ("more", "spellings", "told"),
    [
        (["a", "\ud800"], {}, r"token 6 \('.ud800'\) has half a surrogate pair, which is not a character: replace it"),
        (
            ["a"],
            {"b": [5, 3]},
            r"'b' is spelled with the special token <\|pad\|>: use tokens of the text, or leave it",
        ),
        (["a"], {"b": []}, "'b' is spelled with nothing: use tokens of the text, or leave it out"),
    ],
)
def test_a_vocabulary_that_could_not_write_text_is_refused_with_its_file(
    tmp_path: Path, more: list[str], spellings: dict[str, list[int]], told: str
) -> None:
    tokens = [*SPECIAL_TOKENS, *more]
    state = {"name": "characters", "tokens": tokens, "spellings": spellings}
    (tmp_path / "voc.json").write_text(json.dumps(state), "utf-8")
    with pytest.raises(ValueError, match=rf"voc.json: is not the vocabulary of an export \({told}"):
        read_vocabulary_file(tmp_path / "voc.json")
    spelled = {text: [tokens[index] for index in ids] for text, ids in spellings.items()}
    (tmp_path / "voc.pkl").write_bytes(pickle.dumps({"voc": tokens, "voc0": spelled}))
    with pytest.raises(ValueError, match=rf"voc.pkl: cannot be used: {told}"):
        read_published_vocabulary(tmp_path / "voc.pkl")


def test_a_spelled_character_becomes_several_ids() -> None:
    tokens = [*SPECIAL_TOKENS, "<|pos_0_1|>", "<|pos_1_2|>", "a"]
    vocabulary = Characters(tokens, {"é": [5, 6]})
    assert vocabulary.encode("éaéé").tolist() == [5, 6, 7, 5, 6, 5, 6]
    assert vocabulary.decode([5, 7]) == "<|pos_0_1|>a"
    assert vocabulary_from(vocabulary.state_dict()).encode("é").tolist() == [5, 6]
    assert not vocabulary.token_bytes().any()  # a part of a spelling has no bytes, so bits per byte are not known
    with pytest.raises(ValueError, match="not below 8"):
        Characters(tokens, {"é": [8]})


def test_a_vocabulary_that_does_not_begin_with_the_special_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"begins with <\|sos\|> .* this one with \['a'"):
        Characters(["a", "b"])


def test_one_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="must be characters, bytes or bpe"):
        vocabulary_from({"name": "words"})


def test_choices_that_give_other_ids_have_other_keys() -> None:
    given = Characters.of_text(["ab"])
    choices = [
        VocabularyChoice("characters", 4096, None),
        VocabularyChoice("characters", 4096, given),
        VocabularyChoice("characters", 4096, Characters.of_text(["abc"])),
        VocabularyChoice("bytes", 4096, None),
        VocabularyChoice("bpe", 4096, None),
        VocabularyChoice("bpe", 300, None),
    ]
    assert len({choice.key() for choice in choices}) == len(choices)
    assert VocabularyChoice("bytes", 1, None).key() == VocabularyChoice("bytes", 2, None).key()

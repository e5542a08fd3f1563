"""Pickled vocabularies of the published kind, and pickles that are none."""

import collections
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from samout_train.data import SPECIAL_TOKENS, read_published_vocabulary

PUBLISHED = {
    "voc": [*SPECIAL_TOKENS, *sorted(["<|pos_0_0|>", "<|pos_0_1|>", "<|pos_1_0|>", "你", "a", "b"])],
    "voc0": {"龘": ["<|pos_0_1|>", "<|pos_1_0|>"]},
}


def written(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


class Runs:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_list_and_a_dictionary_are_read_with_each_token_at_its_place(tmp_path: Path, protocol: int) -> None:
    for content in (PUBLISHED["voc"], PUBLISHED):
        vocabulary = read_published_vocabulary(written(tmp_path / "voc.pkl", content, protocol))
        assert len(vocabulary) == 11
        assert vocabulary.encode("ab你").tolist() == [8, 9, 10]
    # 龘 is written as two tokens, as the published scripts write it.
    assert vocabulary.encode("a龘b").tolist() == [8, 6, 7, 9]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((1, 2), "holds a tuple2"),
        ([*SPECIAL_TOKENS, b"a"], "holds a short_binbytes"),
        ([*SPECIAL_TOKENS, None], "holds a none"),
        ([*SPECIAL_TOKENS, 1.5], "holds a binfloat"),
        ([*SPECIAL_TOKENS, ["a", True]], "holds a newtrue"),
        ({"voc": list(SPECIAL_TOKENS), "voc0": {"a": {1}}}, "holds a empty_set"),
        (collections.OrderedDict(voc=[]), "it would run code"),
        ([*SPECIAL_TOKENS, 5], "neither a list of texts"),
        ({"vocabulary": []}, "neither a list of texts"),
        ({"voc": list(SPECIAL_TOKENS), "voc0": ["a"]}, '"voc0" is no dictionary'),
        ({"voc": list(SPECIAL_TOKENS), "voc0": {"a": [["x"]]}}, '"voc0" is no dictionary'),
        ({"voc": list(SPECIAL_TOKENS), "voc0": {5: ["x"]}}, '"voc0" is no dictionary'),
        ({"voc": list(SPECIAL_TOKENS), "voc0": {"a": ["<|pos_0_1|>"]}}, "a spelling has an id"),
        (["a", "b"], "begins with"),
    ],
)
def test_what_is_no_vocabulary_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = written(tmp_path / "voc.pkl", content)
    with pytest.raises(ValueError, match="cannot be used") as caught:
        read_published_vocabulary(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_no_code_is_run(tmp_path: Path) -> None:
    for place in (Runs(tmp_path / "made"), [Runs(tmp_path / "made")], {"voc": Runs(tmp_path / "made")}):
        with pytest.raises(ValueError, match="it would run code"):
            read_published_vocabulary(written(tmp_path / "voc.pkl", place))
    assert not (tmp_path / "made").exists()


def test_a_list_that_holds_itself_ends(tmp_path: Path) -> None:
    content: list[Any] = [*SPECIAL_TOKENS]
    content.append(content)
    with pytest.raises(ValueError, match="neither a list of texts"):
        read_published_vocabulary(written(tmp_path / "voc.pkl", content))


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_damaged_files_are_refused(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path / "voc.pkl", PUBLISHED)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="cannot be used"):
        read_published_vocabulary(path)
    path.write_bytes(bytes(range(cut, cut + 40)))
    with pytest.raises(ValueError, match="cannot be used"):
        read_published_vocabulary(path)
    with pytest.raises(ValueError, match="cannot be used: No such file"):
        read_published_vocabulary(tmp_path / "absent.pkl")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02]r\xff\xff\xff\x04.",  # a place in the memo that would take gigabytes
        b"\x80\x02I01\n.",  # True, in the words of protocol 0
        b"(i\\Z\nx\n.",  # an escape that is none, of which Python warns
        b"cos\n\x1b[31msystem\n(S'true'\ntR.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f]\x94.",
    ],
)
def test_hostile_files_cost_nothing_and_their_words_are_not_shown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "voc.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be used") as caught:
        read_published_vocabulary(path)
    assert "\x1b" not in str(caught.value)

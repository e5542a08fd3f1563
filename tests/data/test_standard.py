"""Corpora with standard splits: the splits, the forms they are distributed in, and figures worked out by hand."""

import gzip
import hashlib
import logging
import math
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from torch import Tensor, nn

from samout_train.config import compose_config
from samout_train.data import Source, whole_data
from samout_train.data.text.files import survey
from samout_train.data.text.hundred_megabytes import Enwik8, Text8, enwik8
from samout_train.data.text.split_files import TinyStories, WikiText103, tinystories, wikitext103
from samout_train.data.text.split_reader import SplitReader
from samout_train.data.text.standard import Published
from samout_train.data.vocabulary.base import Bytes, Characters, characters_in
from samout_train.data.vocabulary.bpe import BytePairs
from samout_train.evaluation import Evaluator, in_order

SETTINGS: dict[str, Any] = {
    "split": "validation",
    "vocabulary": "bytes",
    "vocab_size": 300,
    "vocabulary_path": None,
    "seq_len": 8,
    "ignore_index": 3,
    "seed": 0,
}


def text_of(source: Source, part: str) -> bytes:
    assert source.vocabulary is not None
    return source.vocabulary.to_bytes(getattr(source, part).tokens.tolist())


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("form", ["enwik8", "enwik8.zip", "enwik8.gz"])
def test_one_file_is_split_by_its_bytes_however_it_is_packed(tmp_path: Path, form: str) -> None:
    content = "".join(f"<page>{number}</page>\n" for number in range(1000)).encode()
    path = tmp_path / form
    if form.endswith(".zip"):
        zipped(path, {"enwik8": content})
    else:
        path.write_bytes(gzip.compress(content) if form.endswith(".gz") else content)
    size = len(content)
    for split, start, stop in (("validation", 90, 95), ("test", 95, 100)):
        for where in (path, tmp_path):
            source = enwik8(**{**SETTINGS, "split": split}, path=str(where))
            assert text_of(source, "train") == content[: size * 90 // 100]
            assert text_of(source, "validation") == content[size * start // 100 : size * stop // 100]


def test_a_split_begins_at_a_character(tmp_path: Path) -> None:
    (tmp_path / "enwik8").write_bytes("€".encode() * 400)  # 1,200 bytes: 1,080 and 1,140 are between two, 1,081 is not
    reader = SplitReader(member="*", first=1081, behind=1141)
    text = "".join(str(part) for piece in reader.read(tmp_path / "enwik8") for part in piece.parts)
    assert text == "€" * 20, "from byte 1,083 up to byte 1,143"


def test_another_file_is_read_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = b"another text " * 100
    (tmp_path / "text8").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        corpus = Text8(**SETTINGS, path=str(tmp_path / "text8"))
        description = corpus.source().description
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    assert f"the train split is not that of text8 (the file has 1,300 bytes, MD5 {digest}" in caplog.text
    assert "figures are not comparable with published ones" in caplog.text
    assert str(description["published"]).startswith("no: train: the file has 1,300 bytes")


def test_the_published_file_is_known_by_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    content = b"text" * 300
    zipped(tmp_path / "enwik8.zip", {"enwik8": content})
    monkeypatch.setattr("samout_train.data.text.hundred_megabytes.NUM_BYTES", 1200)
    monkeypatch.setattr(Enwik8, "md5", hashlib.md5(content, usedforsecurity=False).hexdigest())
    source = Enwik8(**SETTINGS, path=str(tmp_path / "enwik8.zip")).source()
    assert source.description["published"] == "as far as it can be checked"
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []


LINES = {
    "train": " \n = Title = \n one two <unk> three @-@ four \n" * 20,
    "valid": " \n = Other = \n five six \n",
    "test": " \n seven eight nine ten . \n",
}


def tokens_folder(folder: Path, kind: str = "tokens") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in LINES.items():
        (folder / f"wiki.{split}.{kind}").write_text(text)
    return folder


def table_folder(folder: Path) -> Path:
    folder.mkdir()
    for split, text in LINES.items():
        rows = pa.table({"text": text.splitlines(keepends=True)})
        name = {"valid": "validation"}.get(split, split)
        parquet.write_table(rows, folder / f"{name}-00000-of-00001.parquet", row_group_size=3)
    return folder


def archive(folder: Path) -> Path:
    folder.mkdir()
    files = {f"wikitext-103/wiki.{split}.tokens": text.encode() for split, text in LINES.items()}
    return zipped(folder / "wikitext-103-v1.zip", {"wikitext-103/": b"", **files})


@pytest.mark.parametrize("form", [tokens_folder, table_folder, archive])
def test_each_split_has_files_of_its_own(tmp_path: Path, form: Any) -> None:
    path = form(tmp_path / "wikitext-103")
    source = wikitext103(**SETTINGS, path=str(path))
    assert text_of(source, "train").decode() == LINES["train"]
    assert text_of(source, "validation").decode() == LINES["valid"]
    # Title line: "=", "Other", "="; then two words; and three line ends.
    assert source.words == 3 + 2 + 3
    tested = wikitext103(**{**SETTINGS, "split": "test"}, path=str(path))
    assert text_of(tested, "validation").decode() == LINES["test"] and tested.words == 5 + 2


def test_words_are_those_of_the_word_level_form_where_the_lines_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"validation": Published(words=1000, lines=3)}
    monkeypatch.setattr(WikiText103, "published", known)
    path = tokens_folder(tmp_path / "raw", "raw")
    corpus = WikiText103(**SETTINGS, path=str(path))
    assert corpus.words(corpus.judged()) == 1000
    assert corpus.difference("validation", corpus.judged()) is None, "raw text has other words"
    monkeypatch.setattr(WikiText103, "published", {"validation": Published(words=1000, lines=4)})
    assert corpus.difference("validation", corpus.judged()) == "it has 8 words, the published one has 1,000"
    assert corpus.words(corpus.judged()) == 8


def test_stories_stand_behind_their_token(tmp_path: Path) -> None:
    for split, times in (("train", 20), ("valid", 3)):
        stories = ["Once upon a time.\nThe end.\n<|endoftext|>\n"] * times
        (tmp_path / f"TinyStories-{split}.txt.gz").write_bytes(gzip.compress("".join(stories).encode()))
    source = tinystories(**SETTINGS, path=str(tmp_path))
    assert text_of(source, "train").count(b"<|sos|>") == 21 and b"endoftext" not in text_of(source, "train")
    assert text_of(source, "validation") == b"<|sos|>Once upon a time.\nThe end.\n" + (
        b"<|sos|>\nOnce upon a time.\nThe end.\n" * 2 + b"<|sos|>\n"
    )
    looked_at = TinyStories(**SETTINGS, path=str(tmp_path)).judged()
    pieces = list(looked_at.reader.read(looked_at.files[0]))
    assert survey(tmp_path, looked_at.files, looked_at.reader).count().documents == 4 and len(pieces) == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "has none of the files of WikiText-103: give the folder or archive with wiki.train.tokens"),
        (["wiki.train.tokens"], "has none of the files"),
        (["wiki.train.tokens", "wiki.valid.tokens", "wiki.train.raw", "wiki.valid.raw"], "has several forms of"),
    ],
)
def test_a_folder_of_other_files_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).write_text("text " * 20)
    (problem,) = WikiText103(**SETTINGS, path=str(tmp_path)).setting_problems("data")
    assert problem.key == "data.path" or str(problem).startswith(f"data.path={tmp_path}: ")
    assert message in str(problem)


def test_a_split_that_there_is_not_is_refused(tmp_path: Path) -> None:
    path = tokens_folder(tmp_path / "folder")
    (path / "wiki.test.tokens").unlink()
    (problem,) = WikiText103(**{**SETTINGS, "split": "test"}, path=str(path)).setting_problems("data")
    assert "data.split=test: WikiText-103 has none: set it to validation" in str(problem)


class Fixed(nn.Module):
    """A model that gives each id a fixed probability, whatever comes before."""

    def __init__(self, probabilities: dict[int, float], vocab_size: int) -> None:
        super().__init__()
        logits = torch.full((vocab_size,), -1e9)
        for index, probability in probabilities.items():
            logits[index] = math.log(probability)
        self.logits = nn.Parameter(logits)

    def forward(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.logits.expand(*ids.shape, -1), state


def measured(text: str, path: Path, probabilities: dict[str, float]) -> tuple[Any, Any]:
    path.write_text(text, "utf-8")
    vocabulary = Characters.of_text(probabilities)
    node = compose_config(["data=text", f"data.path={path}"]).config["data"]
    whole = whole_data(node, vocabulary, seq_len=4)
    source = whole.source(vocabulary, ignore_index=3, line_ends="keep")
    by_id = {int(vocabulary.encode(character)[0]): share for character, share in probabilities.items()}
    evaluator = Evaluator(Fixed(by_id, len(vocabulary)), source, torch.device("cpu"), "fp32")
    return evaluator.loss(in_order(source.validation, 2)), whole


def test_bits_and_perplexity_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    """a costs 1 bit, b 2, blank and line end 3: b ba\\nab\\n behind the first a is 2 3 2 1 3 1 2 3, 17 bits."""
    shares = {"a": 1 / 2, "b": 1 / 4, " ": 1 / 8, "\n": 1 / 8}
    found, _ = measured("ab ba\nab\n", tmp_path / "a.txt", shares)
    assert found.num_targets == found.num_characters == found.num_bytes == 8
    assert found.bits_per_character == found.bits_per_byte == pytest.approx(17 / 8)
    assert found.word_perplexity(3 + 2) == pytest.approx(2 ** (17 / 5)), "three words and two line ends"


def test_characters_of_several_bytes_are_one_each(tmp_path: Path) -> None:
    """é has two bytes and 𝄞 four: aé𝄞 behind the first a is 1 + 2 + 3 bits in three characters or seven bytes."""
    found, _ = measured("aaé𝄞", tmp_path / "a.txt", {"a": 1 / 2, "é": 1 / 4, "𝄞": 1 / 8, "x": 1 / 8})
    assert found.bits_per_character == pytest.approx(6 / 3) and found.bits_per_byte == pytest.approx(6 / 7)


def test_what_the_vocabulary_lacks_counts_for_nothing(tmp_path: Path) -> None:
    """Of a?b? behind the first a, b alone is counted: 2 bits, one character; so there is no perplexity per word."""
    found, whole = measured("aa?b?", tmp_path / "a.txt", {"a": 1 / 2, "b": 1 / 4, "c": 1 / 4})
    assert found.num_targets == found.num_characters == 2 and whole.unknown == 2
    assert found.bits_per_character == pytest.approx((1 + 2) / 2)


LEARNED = "naïve 𝄞x"


@pytest.mark.parametrize(
    "vocabulary", [Bytes(), Characters.of_text(LEARNED), BytePairs.of_text([LEARNED] * 9, 270)], ids=["1", "2", "3"]
)
def test_characters_of_tokens_add_up_to_those_of_the_text(vocabulary: Any) -> None:
    text = "x𝄞 naïve ïx"
    numbers = vocabulary.token_characters()
    assert numbers[vocabulary.encode(text)].sum() == len(text)
    assert (numbers <= vocabulary.token_bytes()).all() and numbers[:5].tolist() == [0] * 5
    assert characters_in("𝄞".encode()[1:] + b"x") == 1

"""Documents that lie in both parts are found: exactly those that a comparison of all pairs finds."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.random import Generator, default_rng

from samout_train.cli import tokenize
from samout_train.data import Bytes, Characters, Vocabulary
from samout_train.data.shards.source import shards
from samout_train.data.text import copies as module
from samout_train.data.text.copies import Words, copies, document_hashes, starts_of
from samout_train.data.text.jsonl import jsonl
from samout_train.data.text.python_source import python_source
from samout_train.data.text.text import text
from samout_train.data.vocabulary.bpe import BytePairs

SETTINGS = {"vocabulary": "bytes", "vocab_size": 300, "vocabulary_path": None, "ignore_index": 3, "seed": 0}


def drawn(random: Generator) -> list[list[int]]:
    return [random.integers(5, 7, random.integers(0, 4)).tolist() for _ in range(random.integers(1, 8))]


@pytest.mark.parametrize("together", [1, 3, 1 << 20])
def test_copies_are_those_that_a_comparison_of_all_pairs_finds(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOKENS_TOGETHER", together)
    monkeypatch.setattr(module, "POWERS", 2)
    module._small_powers.cache_clear()
    random, words = default_rng(0), Words.of(Bytes())
    for _ in range(100):
        documents = drawn(random)
        tokens = np.concatenate([[0, *document] for document in documents]).astype(np.uint16)
        starts = starts_of(tokens)
        ends = np.append(starts[1:], len(tokens))
        hashes = document_hashes(tokens, starts, words)
        assert all(
            (hashes[one] == hashes[other]) == (documents[one] == documents[other])
            for one in range(len(documents))
            for other in range(len(documents))
        )
        cut = int(random.integers(len(tokens) + 1))
        wanted = [
            one
            for one, document in enumerate(documents)
            if ends[one] > cut
            and document
            and any(
                documents[other] == document and other != one and starts[other] < cut for other in range(len(documents))
            )
        ]
        assert copies(tokens, starts, cut, words).tolist() == wanted


@pytest.fixture(autouse=True)
def _powers_of_the_usual_number() -> Iterator[None]:
    yield
    module._small_powers.cache_clear()


SAME = ["one two\n\nthree é", "one two\r\n\r\nthree é", " \t one two\n\nthree é\n \n", "\none two\r\rthree é"]


@pytest.mark.parametrize("name", ["characters", "bytes", "bpe"])
def test_other_line_ends_and_blanks_make_no_other_text(name: str) -> None:
    texts = [*SAME, "one two\n\nthree e", "three é one two", " \n"]
    made = {"characters": Characters.of_text, "bytes": lambda _: Bytes(), "bpe": lambda it: BytePairs.of_text(it, 290)}
    vocabulary: Vocabulary = made[name](texts * 5)
    ids = [[0, *vocabulary.encode(each).tolist()] for each in texts]
    tokens = np.concatenate(ids)
    hashes = document_hashes(tokens, starts_of(tokens), Words.of(vocabulary)).tolist()
    assert len(set(hashes[:4])) == 1 and len(set(hashes)) == 4 and hashes[-1] == 0


def test_copies_with_other_line_ends_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(20):
        (tmp_path / f"{number:02d}.txt").write_bytes(f"text number {number}\nand more ".encode() * 9)
    (tmp_path / "19.txt").write_bytes(b" " + (tmp_path / "03.txt").read_bytes().replace(b"\n", b"\r\n"))
    text(path=str(tmp_path), pattern="**/*.txt", seq_len=8, **SETTINGS)  # type: ignore[arg-type]
    assert "1 of 2 validation files are also in the training split, word for word (19.txt)" in caplog.text


def test_a_copied_file_in_both_parts_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(20):
        (tmp_path / f"{number:02d}.txt").write_text(f"text number {number} " * 10)
    settings = {"path": str(tmp_path), "pattern": "**/*.txt", "seq_len": 8, **SETTINGS}
    text(**settings)
    assert "also in the training split" not in caplog.text
    (tmp_path / "19.txt").write_bytes((tmp_path / "03.txt").read_bytes())
    (tmp_path / "02.txt").write_bytes((tmp_path / "01.txt").read_bytes())  # twice in one part
    text(**settings)
    assert "1 of 2 validation files are also in the training split, word for word (19.txt)" in caplog.text


def test_copied_documents_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f'{{"text": "document number {number:02d}"}}' for number in range(50)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, lines[7], lines[8]]) + "\n")
    roles: dict[str, str] = {}
    path = str(tmp_path / "a.jsonl")
    jsonl(path=path, pattern="", layout="packed", roles=roles, seq_len=8, **SETTINGS)
    assert "2 of 5 validation documents are also in the training split, word for word: remove the copies" in caplog.text


@pytest.mark.slow
def test_copied_documents_of_shards_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f'{{"text": "document number {number:02d}"}}' for number in range(50)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, lines[7], lines[8]]) + "\n")
    words = [f"path={tmp_path / 'a.jsonl'}", f"out={tmp_path / 'out'}", "vocabulary=bytes", "part_bytes=400", "jobs=1"]
    assert tokenize.tokenize(words) == 0
    settings = {"paths": str(tmp_path / "out"), "weights": None, "layout": "packed", "validation_tokens": 1000}
    shards(**settings, seq_len=8, ignore_index=3, seed=0)  # type: ignore[arg-type]
    assert "2 of 5 validation documents are also in the training split, word for word: remove" in caplog.text


@pytest.mark.slow
def test_files_that_nobody_can_remove_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    python_source(**SETTINGS, seq_len=64)
    assert "are also in the training split" not in caplog.text

"""Tokenizing that is interrupted, damaged, waited for: the ids are those of a tokenizing that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from samout_train.data import Bytes, Characters, VocabularyName
from samout_train.data.text import token_cache
from samout_train.data.text.documents import TextReader
from samout_train.data.text.files import Survey, survey
from samout_train.data.text.token_cache import tokenize
from samout_train.data.vocabulary.choice import VocabularyChoice
from samout_train.runtime import StopRequestedError, cache_path
from samout_train.runtime.home import cache_directory

NAMES: list[VocabularyName] = ["characters", "bytes", "bpe"]


@pytest.fixture(autouse=True)
def small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMOUT_TRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("samout_train.data.text.documents.CHUNK_BYTES", 40)


def files(folder: Path) -> Survey:
    """Three files of several pieces each, and an empty one first."""
    made = [folder / name for name in ("0.txt", "a.txt", "b.txt", "c.txt")]
    made[0].touch()
    for number, path in enumerate(made[1:]):
        path.write_text(f"file {number}, the names of things; " * (5 + number), "utf-8")
    return survey(folder, made, TextReader(sos=True))


def choice(name: VocabularyName) -> VocabularyChoice:
    return VocabularyChoice(name, 280, None)


class InterruptedReader(TextReader):
    """After some pieces, a signal comes."""

    pieces_left = 0

    def read(self, path: Path, start: int = 0) -> Any:
        for piece in super().read(path, start):
            if type(self).pieces_left == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.05)  # a vocabulary may be learned in another thread than the one that takes signals
            type(self).pieces_left -= 1
            yield piece

    def __repr__(self) -> str:
        return repr(TextReader(sos=self.sos))


class CountingReader(TextReader):
    """Counts what is read."""

    read_pieces = 0

    def read(self, path: Path, start: int = 0) -> Any:
        for piece in super().read(path, start):
            type(self).read_pieces += 1
            yield piece

    def __repr__(self) -> str:
        return repr(TextReader(sos=self.sos))


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_tokenizing_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: VocabularyName
) -> None:
    looked_at = files(tmp_path)
    wanted = tokenize(looked_at, choice(name))
    num_pieces = sum(1 for path in looked_at.files for _ in looked_at.reader.read(path))
    assert num_pieces > 10
    interrupted = survey(tmp_path, looked_at.files, InterruptedReader(sos=True))
    learning = 0 if name == "bytes" else num_pieces
    for stop_after in range(0, num_pieces, 3):
        monkeypatch.setenv("SAMOUT_TRAIN_CACHE", str(tmp_path / f"cache {stop_after}"))
        InterruptedReader.pieces_left = learning + stop_after
        with pytest.raises(StopRequestedError):
            tokenize(interrupted, choice(name))
        assert not list(cache_directory().glob("*.bin"))
        CountingReader.read_pieces = 0
        got = tokenize(survey(tmp_path, looked_at.files, CountingReader(sos=True)), choice(name))
        assert np.array_equal(got.tokens, wanted.tokens)
        assert CountingReader.read_pieces == num_pieces - stop_after - 1  # nothing is learned or tokenized twice
        assert {path.suffix for path in cache_directory().iterdir()} == {".bin", ".json", ".lock"}


def test_a_stop_while_the_vocabulary_is_learned_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMOUT_TRAIN_CACHE", str(tmp_path / "cache"))
    interrupted = survey(tmp_path, files(tmp_path).files, InterruptedReader(sos=True))
    for name in ("characters", "bpe"):
        InterruptedReader.pieces_left = 2
        with pytest.raises(StopRequestedError):
            tokenize(interrupted, choice(name))
    assert {path.suffix for path in cache_directory().iterdir()} == {".lock"}


def test_damaged_entries_are_made_anew(tmp_path: Path) -> None:
    looked_at = files(tmp_path)
    wanted = np.array(tokenize(looked_at, choice("bytes")).tokens)
    (ids,), (note,) = (list(cache_directory().glob(pattern)) for pattern in ("*.bin", "*.json"))
    for damage in (
        lambda: ids.write_bytes(b"x"),
        lambda: note.write_text("{"),
        lambda: note.write_text("[]"),
        ids.unlink,
        lambda: ids.write_bytes(ids.read_bytes()[::-1]),  # ids that its vocabulary has
    ):
        damage()
        assert np.array_equal(tokenize(looked_at, choice("bytes")).tokens, wanted)
    part, journal = ids.with_suffix(".part"), ids.with_suffix(".part.json")
    for content in ("{", '{"vocabulary": {"name": "bytes"}, "num_tokens": 50}', '{"vocabulary": {"name": "none"}}'):
        ids.unlink()
        part.write_bytes(b"half")
        journal.write_text(content)
        assert np.array_equal(tokenize(looked_at, choice("bytes")).tokens, wanted)


def test_a_given_vocabulary_is_used_as_it_is_and_what_it_has_not_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcab", "utf-8")
    given = VocabularyChoice("characters", 280, Characters.of_text(["ab"]))
    tokenized = tokenize(survey(tmp_path, [path], TextReader(sos=False)), given)
    assert tokenized.tokens.tolist() == [5, 6, 3, 5, 6] and tokenized.unknown == 1


def test_a_vocabulary_that_does_not_know_the_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcxyz", "utf-8")
    given = VocabularyChoice("characters", 280, Characters.of_text(["ab"]))
    with pytest.raises(ValueError, match="4 of 6 tokens of the text are not in it"):
        tokenize(survey(tmp_path, [path], TextReader(sos=False)), given)


def test_a_file_that_is_changed_meanwhile_is_not_kept_under_its_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abc", "utf-8")
    looked_at = survey(tmp_path, [path], TextReader(sos=False))
    path.write_text("xyz", "utf-8")
    with pytest.raises(ValueError, match="have changed during tokenizing"):
        tokenize(looked_at, choice("bytes"))
    path.write_text("abc", "utf-8")
    assert tokenize(looked_at, choice("bytes")).tokens.tolist() == Bytes().encode("abc").tolist()


@pytest.mark.slow
def test_more_than_65536_ids_take_four_bytes_each(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    many = Characters.of_text(chr(code) for code in range(32, 70000) if not 0xD800 <= code <= 0xDFFF)
    path.write_text("ab" + chr(69999), "utf-8")
    tokenized = tokenize(survey(tmp_path, [path], TextReader(sos=False)), VocabularyChoice("characters", 280, many))
    assert tokenized.tokens.dtype == np.uint32 and tokenized.tokens.tolist() == many.encode("ab" + chr(69999)).tolist()


@pytest.mark.slow
def test_of_two_processes_one_tokenizes_and_the_other_waits(tmp_path: Path) -> None:
    looked_at = files(tmp_path)
    parts = ("tokens", token_cache.FORMAT, looked_at.reader, "bytes", len(looked_at.files), looked_at.sha256)
    lock = FileLock(cache_path(*parts, ending=".lock"))
    code = (
        "import logging, sys; logging.basicConfig(level=logging.INFO)\n"
        "from pathlib import Path; from samout_train.data.text.files import find\n"
        "from samout_train.data.text.documents import TextReader; from samout_train.data.text.files import survey\n"
        "from samout_train.data.text.token_cache import tokenize\n"
        "from samout_train.data.vocabulary.choice import VocabularyChoice\n"
        "found = find(sys.argv[1], '*.txt'); looked_at = survey(found.root, found.files, TextReader(sos=True))\n"
        "print(len(tokenize(looked_at, VocabularyChoice('bytes', 280, None)).tokens))"
    )
    with lock:
        waiting = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert waiting.stderr is not None and "waiting for another process" in waiting.stderr.readline()
        assert not list(cache_directory().glob("*.bin"))
    out, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    text = "".join(path.read_text("utf-8") for path in looked_at.files)
    assert int(out) == len(Bytes().encode(text)) + 3


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAMOUT_TRAIN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match="set SAMOUT_TRAIN_CACHE to another folder"):
        tokenize(files(tmp_path), choice("bytes"))

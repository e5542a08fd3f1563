"""Text without blanks: cut at the same places however it is read, learned in seconds, left at once on a signal."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from samout_train.data import LineEnds
from samout_train.data.text import cuts
from samout_train.data.text.cuts import folded, parts_of_text, whole_parts
from samout_train.data.text.documents import Piece, TextReader
from samout_train.data.text.files import survey
from samout_train.data.text.token_cache import tokenize
from samout_train.data.vocabulary.bpe import LONGEST_RUN, BytePairs
from samout_train.data.vocabulary.choice import VocabularyChoice
from samout_train.runtime import StopRequestedError, StopSignals

PIECES = [
    "ab",
    "äö𝄞",
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    "\r",
    "12",
    "!?",
    "漢字漢字漢字",
    "acgtacgtacgtacgtacgt",
    "\x1c",
    "\x85",
]


def made_up(seed: int, length: int = 60) -> str:
    return "".join(random.Random(seed).choices(PIECES, k=length))


def bases(length: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices("acgt", k=length))


@pytest.fixture(scope="module")
def vocabulary() -> BytePairs:
    return BytePairs.of_text([made_up(seed) for seed in range(40)], 400)


def words_of(vocabulary: BytePairs, text: str) -> list[str]:
    """The words that the library makes of a text as a whole."""
    found = vocabulary._tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return [text[start:end] for _, (start, end) in found]


def test_a_part_ends_behind_a_word_or_where_it_is_as_long_as_one_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "LONGEST", 5)
    assert list(parts_of_text("ab cd efghijklmnop q\nrs\tt")) == [*("ab cd", " efgh", "ijklm", "nop q", "\nrs", "\tt")]
    assert list(parts_of_text("abcde fghij")) == ["abcde", " fghi", "j"]
    assert list(parts_of_text("")) == [] and list(parts_of_text("       ")) == ["     ", "  "]


def test_whole_parts_of_a_beginning_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "LONGEST", 4)
    for seed in range(60):
        for fold in (False, True):
            text, start, parts = made_up(seed, 12), 0, []
            wanted = list(parts_of_text(folded(text) if fold else text))
            while start < len(text):
                for length in range(1, len(text) + 1):
                    beginning = text[start : start + length]
                    whole = whole_parts(beginning, fold=fold) if start + length < len(text) else len(beginning)
                    if whole:
                        break
                taken = beginning[:whole]
                parts += parts_of_text(folded(taken) if fold else taken)
                start += whole
            assert parts == wanted, (seed, fold)


@pytest.mark.parametrize("line_ends", ["keep", "fold"])
@pytest.mark.parametrize("chunk_bytes", [5, 16, 64])
def test_pieces_of_a_file_have_the_tokens_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocabulary: BytePairs, chunk_bytes: int, line_ends: LineEnds
) -> None:
    monkeypatch.setattr("samout_train.data.text.documents.CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(cuts, "LONGEST", 16)
    path, reader = tmp_path / "text.txt", TextReader(sos=False, line_ends=line_ends)
    for seed in range(25):
        content = made_up(seed)
        path.write_bytes(b"\xef\xbb\xbf" * (seed % 2) + content.encode())
        whole = folded(content) if line_ends == "fold" else content
        pieces = list(reader.read(path))
        assert "".join(str(part) for piece in pieces for part in piece.parts) == whole
        ids = [index for piece in pieces for part in piece.parts for index in vocabulary.encode(str(part)).tolist()]
        assert ids == vocabulary.encode(whole).tolist()
        for number, piece in enumerate(pieces):
            assert list(reader.read(path, piece.end)) == pieces[number + 1 :]


def test_runs_are_cut_and_all_other_words_are_those_of_gpt_2() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = BytePairs.of_text(["ab"], 300)
    for seed in range(50):
        text = made_up(seed, 12) + " it's 'til I'll go\n\n  on"
        by_library = ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
        wanted = [text[start:end] for _, (start, end) in by_library]
        assert max(map(len, wanted)) > LONGEST_RUN or words_of(vocabulary, text) == wanted
    for run in ("a", "漢", "7", "-", " "):
        assert words_of(vocabulary, run * 150) == [run * LONGEST_RUN, run * LONGEST_RUN, run * (150 - 2 * LONGEST_RUN)]


def test_a_vocabulary_of_an_earlier_version_encodes_as_it_did() -> None:
    import tokenizers

    earlier = tokenizers.Tokenizer(tokenizers.models.BPE())
    earlier.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    earlier.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    special = ["<|sos|>", "<|user|>", "<|agent|>", "<|pad|>", "<|history|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    earlier.train_from_iterator(["a" * 300, bases(300)], trainer)
    text = "a" * 70_001 + bases(70_000) + " and so on"
    wanted = earlier.encode(text, add_special_tokens=False).ids
    assert BytePairs(earlier.to_str()).encode(text).tolist() == wanted


@pytest.mark.slow
def test_bases_are_learned_in_seconds_and_come_back() -> None:
    text = bases(300_000)
    started = time.monotonic()
    vocabulary = BytePairs.of_text([text], 1000)
    assert time.monotonic() - started < 20  # as one word it takes minutes
    ids = vocabulary.encode(text)
    assert len(vocabulary) == 1000 and len(ids) < len(text) / 3 and vocabulary.decode(ids.tolist()) == text


class NeverRead(TextReader):
    """A signal comes, and the reading, which is in the library's thread, does not end."""

    never = threading.Event()

    def read(self, path: Path, start: int = 0, stop: int | None = None) -> Iterator[Piece]:
        os.kill(os.getpid(), signal.SIGTERM)
        self.never.wait(60)
        return iter(())


def test_learning_is_left_at_once_on_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("acgt" * 100)
    monkeypatch.setenv("SAMOUT_TRAIN_CACHE", str(tmp_path / "cache"))
    looked_at = survey(tmp_path, [tmp_path / "a.txt"], NeverRead(sos=False))
    started = time.monotonic()
    with pytest.raises(StopRequestedError) as stopped:
        tokenize(looked_at, VocabularyChoice("bpe", 300, None))
    NeverRead.never.set()
    assert stopped.value.exit_code == 143 and time.monotonic() - started < 5


@pytest.mark.nightly
@pytest.mark.parametrize("moment", [0.2, 0.7, 1.2, 1.7])
def test_the_program_ends_with_the_code_of_the_signal_while_the_library_learns(tmp_path: Path, moment: float) -> None:
    (tmp_path / "a.txt").write_text(bases(6_000_000))
    words = [sys.executable, "-m", "samout_train", "tokenize", "path=a.txt", "out=out", "vocab_size=4096", "jobs=1"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60  # until the plan's lock is there, which is held while pairs are learned
    while not (tmp_path / "out").is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(moment)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143 and "Abort" not in told and "FATAL" not in told, told


def test_what_is_raised_while_pairs_are_learned_is_raised_to_the_caller() -> None:
    def texts() -> object:
        yield "ab"
        raise ValueError("bad text")

    with StopSignals() as signals, pytest.raises(ValueError, match="bad text"):
        BytePairs.of_text(texts(), 300, check_stop=signals.check)  # type: ignore[arg-type]


@pytest.mark.nightly
def test_ten_megabytes_without_a_blank_learn_4096_ids_within_a_minute() -> None:
    started = time.process_time()
    vocabulary = BytePairs.of_text([bases(10_000_000)], 4096)
    assert len(vocabulary) == 4096 and time.process_time() - started < 60

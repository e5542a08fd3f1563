"""Random ids, text and the standard library: what is read, how it is split, what is refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samout_train.data import Source
from samout_train.data.random_tokens import random_tokens
from samout_train.data.text.python_source import python_source
from samout_train.data.text.text import text
from samout_train.runtime.home import cache_directory


def random_source(**changes: int) -> Source:
    settings = {"vocab_size": 128, "seq_len": 49, "num_sequences": 100, "pad_id": 3, "ignore_index": 3, "seed": 0}
    return random_tokens(pad_probability=0.1, **(settings | changes))


def text_source(path: Path, *, vocabulary: str = "characters", pattern: str = "**/*.txt", seq_len: int = 16) -> Source:
    return text(path=str(path), pattern=pattern, seq_len=seq_len, **vocabulary_settings(vocabulary))


def vocabulary_settings(name: str = "characters", **changes: Any) -> dict[str, Any]:
    common = {"vocab_size": 300, "vocabulary_path": None, "ignore_index": 3, "seed": 0}
    return {"vocabulary": name} | common | changes


def test_random_rows_are_as_published() -> None:
    source = random_source(num_sequences=4000)
    ids = source.train.windows(0, 4000)
    assert ids.shape == (4000, 50) and ids.min() == 0 and ids.max() == 127
    # Each id has 1/128 of 200,000 draws, 1,562 with a standard deviation of 39; id 3 has 400 more, of sd 19.
    counts = torch.bincount(ids.flatten(), minlength=128)
    others = torch.cat([counts[:3], counts[4:]])
    assert (others - 1560).abs().max() < 5 * 39
    assert abs(int(counts[3]) - 1960) < 5 * 45


def test_random_validation_rows_are_fresh_and_seeds_differ() -> None:
    source = random_source()
    assert not torch.equal(source.train.windows(0, 100), source.validation.windows(0, 100))
    assert torch.equal(source.train.windows(0, 100), random_source().train.windows(0, 100))
    assert not torch.equal(source.train.windows(0, 100), random_source(seed=1).train.windows(0, 100))


def test_random_floor_is_the_entropy_of_the_counted_targets() -> None:
    assert random_source().floor_nats == pytest.approx(math.log(127))


def test_padding_that_would_be_learned_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ignore_index \(-100\) must be the padding id \(3\)"):
        random_source(ignore_index=-100)


def test_text_is_split_by_position(small_text: Path) -> None:
    content = small_text.read_text("utf-8")
    for vocabulary, length in (("characters", len(content)), ("bytes", len(content.encode()))):
        source = text_source(small_text, vocabulary=vocabulary)
        assert source.vocabulary is not None
        first, second = (rows.windows(0, rows.num_windows) for rows in (source.train, source.validation))
        cut = int(0.9 * length)
        train_ids = torch.cat([first[0, :1], first[:, 1:].flatten()])[:cut]
        validation_ids = torch.cat([second[0, :1], second[:, 1:].flatten()])[: length - cut]
        decoded = source.vocabulary.decode([*train_ids.tolist(), *validation_ids.tolist()])
        assert decoded == content
        assert source.description["sha256"] == _sha256(small_text)


def test_files_of_a_folder_are_joined_by_name_each_behind_its_start(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("second", "utf-8")
    (tmp_path / "a.txt").write_text("first", "utf-8")
    (tmp_path / "sub" / "c.txt").write_text("third", "utf-8")
    (tmp_path / "d.md").write_text("not this", "utf-8")
    source = text_source(tmp_path, vocabulary="bytes", seq_len=1)
    assert source.vocabulary is not None
    ids = torch.cat([source.train.windows(0, 99)[:, 0], source.train.windows(0, 99)[-1:, 1]])
    assert source.vocabulary.decode(ids.tolist()) == "<|sos|>first<|sos|>second<|sos|>thi"
    assert [entry["name"] for entry in source.description["files"]] == ["a.txt", "b.txt", "sub/c.txt"]


def test_the_same_content_is_tokenized_once(tmp_path: Path, small_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMOUT_TRAIN_CACHE", str(tmp_path / "cache"))
    text_source(small_text)
    written = {path: path.stat().st_mtime_ns for path in cache_directory().iterdir()}
    assert sorted(path.suffix for path in written) == [".bin", ".json", ".lock"]
    small_text.rename(tmp_path / "renamed.txt")
    again = text_source(tmp_path / "renamed.txt")
    assert {path: path.stat().st_mtime_ns for path in cache_directory().iterdir()} == written
    assert isinstance(again.train.tokens.base, np.memmap)
    for number, vocabulary in enumerate(("bytes", "bpe"), start=2):
        text_source(tmp_path / "renamed.txt", vocabulary=vocabulary)
        assert len(list(cache_directory().glob("*.bin"))) == number


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there is no text"),
        (b"abc" * 20 + b"\xff" + b"abc" * 20, r"is not UTF-8 at byte 60 \(0xff\)"),
        ("ä".encode() * 40 + b"\xc3", "ends within a character at byte 80 .*cut short"),
        (
            b"short",
            r"data.seq_len=16: a row takes 17 tokens, and .*bad.txt has 5 \(5 bytes\), 1 of them",
        ),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        text_source(path)


def test_a_place_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not there"):
        text_source(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"has no file that matches pattern=\*\*/\*.txt"):
        text_source(tmp_path)


def test_the_standard_library_is_ten_megabytes_of_recorded_text() -> None:
    source = python_source(seq_len=64, **vocabulary_settings())
    files = source.description["files"]
    assert isinstance(files, list) and {"ast.py", "json/decoder.py"} <= {entry["name"] for entry in files}
    assert sum(entry["bytes"] for entry in files) > 10_000_000
    assert all(len(entry["sha256"]) == 64 for entry in files)
    assert not [entry for entry in files if "site-packages" in entry["name"] or entry["name"].startswith("test/")]
    assert source.vocabulary is not None
    start = source.vocabulary.decode(source.train.windows(0, 1)[0].tolist())
    assert start.startswith("<|sos|>")


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()

"""A text too short for a row: its name, what it has, what is needed, and what would fit; and that it then fits."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from samout_train.cli import tokenize
from samout_train.data.shards.source import Shards, shards
from samout_train.data.text.base import too_short
from samout_train.data.text.jsonl import Jsonl, jsonl
from samout_train.data.text.text import Text, text

COMMON = {"vocab_size": 300, "vocabulary_path": None, "ignore_index": 3, "seed": 0}


def refused(build: Any, settings: dict[str, Any]) -> str:
    with pytest.raises(ValueError) as caught:
        build(**settings)
    return str(caught.value)


@pytest.mark.parametrize("vocabulary", ["characters", "bytes", "bpe"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_of_text(tmp_path: Path, vocabulary: str, in_folder: bool) -> None:
    (tmp_path / "a.txt").write_text("some words of text " * 10)
    (tmp_path / "b.txt").write_text("and more words " * 5)
    path = tmp_path if in_folder else tmp_path / "a.txt"
    settings = {"path": str(path), "pattern": "*.txt", "vocabulary": vocabulary, "seq_len": 100, **COMMON}
    message = refused(text, settings)
    where = re.escape(f"2 files in {tmp_path}" if in_folder else str(path))
    numbers = re.fullmatch(
        rf"data.seq_len=100: a row takes 101 tokens, and {where} has (\d+) \((\d+) bytes\), (\d+) of them for "
        r"validation: set data.seq_len to (\d+) or less, or use a text of about ([\d,]+) bytes or more",
        message,
    )
    assert numbers and int(numbers[2]) == (265 if in_folder else 190)
    if vocabulary != "bpe":
        assert list(map(str, Text.problems(settings, "data"))) == [message]
    fits = int(numbers[4])
    assert text(**settings | {"seq_len": fits}).validation.seq_len == fits
    refused(text, settings | {"seq_len": fits + 1})
    if vocabulary == "bpe":
        return  # a longer text has other pairs
    enough = int(numbers[5].replace(",", ""))
    (tmp_path / "a.txt").write_text(("some words of text " * (enough // 19 + 2))[: enough + 20])
    assert text(**settings | {"path": str(tmp_path / "a.txt")}).validation.seq_len == 100


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_of_documents(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(20)))
    settings: dict[str, Any] = {"path": str(path), "pattern": "", "layout": layout, "roles": {}, "vocabulary": "bytes"}
    settings |= {"seq_len": 50, **COMMON}
    assert Jsonl.problems(settings, "data") == []
    if layout == "padded":
        assert jsonl(**settings).validation.seq_len == 50
        return
    message = refused(jsonl, settings)
    assert f"a row takes 51 tokens, and {path} has 150" in message and "for validation: set data.seq_len to" in message
    assert message.endswith("or set data.layout to padded")
    fits = int(message.partition("set data.seq_len to ")[2].split()[0])
    assert jsonl(**settings | {"seq_len": fits}).validation.seq_len == fits


@pytest.mark.slow
def test_of_shards(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words " * 50)
    out = tmp_path / "out"
    assert tokenize.tokenize([f"path={tmp_path / 'a.txt'}", f"out={out}", "vocabulary=bytes", "jobs=1"]) == 0
    settings: dict[str, Any] = {"paths": str(out), "weights": None, "layout": "packed", "ignore_index": 3, "seed": 0}
    settings |= {"seq_len": 100, "validation_tokens": 1000}
    (message,) = map(str, Shards.problems(settings, "data"))
    assert f"a row takes 101 tokens, and {out} has 551 (550 bytes), 55 of them for validation" in message
    assert "set data.seq_len to 54 or less" in message
    assert refused(shards, settings) == message
    assert Shards.problems(settings | {"seq_len": 54}, "data") == []
    (message,) = map(str, Shards.problems(settings | {"validation_tokens": 20, "seq_len": 54}, "data"))
    assert message == (
        "data.validation_tokens=20: a row takes 55 tokens: set it to 55 or more, or data.seq_len to 19 or less"
    )


def test_where_nothing_fits_a_longer_text_is_asked_for() -> None:
    whole = {"num_tokens": 10, "part": "for validation", "num_bytes": 12}
    assert too_short("a.txt", seq_len=256, num_part=1, **whole) == (  # type: ignore[arg-type]
        "data.seq_len=256: a row takes 257 tokens, and a.txt has 10 (12 bytes), 1 of them for validation: use a text "
        "of about 3,084 bytes or more"
    )
    assert too_short("a.txt", seq_len=2, num_part=3, **whole) is None  # type: ignore[arg-type]

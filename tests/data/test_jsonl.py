"""Documents in rows: padded or packed, every token a target once, split between documents."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samout_train.data import SPECIAL_TOKENS, Source
from samout_train.data.text.jsonl import jsonl
from samout_train.data.text.rows import PaddedRows

TEXTS = ["abcde", "f", "ghijklmno", "pq", "rstuv", "wxyz", "abc", "defg", "hijkl", "mnop"]


def source(path: Path, layout: str = "padded", **changes: Any) -> Source:
    settings: dict[str, Any] = {
        "pattern": "**/*.jsonl",
        "roles": {"user": "<|user|>", "assistant": "<|agent|>"},
        "vocabulary": "characters",
        "vocab_size": 300,
        "vocabulary_path": None,
        "seq_len": 3,
        "ignore_index": 3,
        "seed": 0,
    }
    return jsonl(path=str(path), layout=layout, **(settings | changes))


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), "utf-8")
    return path


def rows(part: Any) -> list[list[int]]:
    found: list[list[int]] = part.windows(0, part.num_windows).tolist()
    return found


def test_padded_rows_begin_with_a_document_or_go_on_with_one_and_are_filled_with_3(documents: Path) -> None:
    got = source(documents)
    assert got.vocabulary is not None
    shown = ["".join(got.vocabulary.decode([i]) if i != 3 else "." for i in row) for row in rows(got.train)]
    # 42 characters and 10 marks; 90 % of them end within the last document, which alone is for validation.
    assert shown == [
        *("abcd", "de..", "ghij", "jklm", "mno.", "pq..", "rstu", "uv.."),
        *("wxyz", "abc.", "defg", "hijk", "kl.."),
    ]
    assert [got.vocabulary.decode(row) for row in rows(got.validation)] == ["mnop"]
    # 4 + 0 + 8 + 1 + 4 + 3 + 2 + 3 + 4 targets in 13 rows of 3.
    assert got.description["waste padded"] == f"{1 - 29 / 39:.2%}"
    assert got.description["waste packed"] == "0.00%"
    order = np.array([3, 0, 3])
    assert torch.equal(got.train.take(order, 5), got.train.windows(0, 99)[torch.from_numpy(order)])


def test_packed_rows_are_the_documents_one_after_another_behind_sos(documents: Path) -> None:
    got = source(documents, "packed")
    assert got.vocabulary is not None
    ids = torch.cat([got.train.windows(0, 99)[:1, 0], got.train.windows(0, 99)[:, 1:].flatten()])
    stream = "".join("<|sos|>" + text for text in TEXTS[:-1])
    assert got.vocabulary.decode(ids.tolist()) == stream + "<|pad|>" * 2
    assert got.vocabulary.decode(rows(got.validation)[0]) == "<|sos|>mno"


def test_both_layouts_share_one_tokenizing(documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMOUT_TRAIN_CACHE", str(tmp_path / "cache"))
    source(documents)
    source(documents, "packed")
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 1


def test_characters_that_a_given_vocabulary_has_not_are_waste_too(tmp_path: Path) -> None:
    path, vocabulary = tmp_path / "a.jsonl", tmp_path / "voc.pkl"
    path.write_text('{"text": "abxab"}\n{"text": "ab"}\n', "utf-8")
    vocabulary.write_bytes(pickle.dumps([*SPECIAL_TOKENS, "a", "b"]))
    got = source(path, seq_len=4, vocabulary_path=str(vocabulary))
    # abxab has 4 targets, 1 of them unknown, in 1 row of 4; packed it has 6 tokens with its mark.
    assert (got.description["waste padded"], got.description["waste packed"]) == ("25.00%", f"{1 / 6:.2%}")


def test_special_tokens_of_roles_are_targets(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    turns = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]
    path.write_text(json.dumps({"conversations": turns}) + "\n" + '{"text": "abc"}\n', "utf-8")
    assert rows(source(path, seq_len=5).train) == [[1, 5, 6, 2, 7, 3]]


def test_one_document_cannot_be_split(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"text": "abc"}\n', "utf-8")
    with pytest.raises(ValueError, match="has 1 document: use two or more"):
        source(path)


def test_documents_of_one_token_have_no_target(tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n', "utf-8")
    with pytest.raises(ValueError, match="fewer than two tokens"):
        source(path)


def test_documents_of_one_token_can_be_packed(tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    path.write_text('{"text": "a"}\n' * 30, "utf-8")
    got = source(path, "packed")
    assert got.vocabulary is not None
    assert got.vocabulary.decode(rows(got.train)[0]) == "<|sos|>a<|sos|>a"
    assert got.description["waste padded"] == "all"


def test_rows_of_documents_of_every_length_hold_each_target_once() -> None:
    lengths = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])  # the first token of each is <|sos|>
    ends = np.cumsum(lengths)
    starts = ends - lengths
    padded = PaddedRows(np.arange(100, 100 + ends[-1]), np.stack([starts, ends], axis=1), seq_len=4)
    ids = padded.windows(0, 99)
    targets = ids[:, 1:][ids[:, 1:] != 3].tolist()
    no_targets = {*(100 + starts).tolist(), *(101 + starts).tolist()}
    assert targets == [token for token in range(100, 100 + ends[-1]) if token not in no_targets]
    assert padded.num_targets == len(targets) and (ids[:, 1] != 3).all()


def test_documents_that_are_left_out_are_counted_among_the_facts(tmp_path: Path) -> None:
    path = tmp_path / "documents"
    path.mkdir()
    lines = [{"text": "abc"}] * 8 + [{"text": ""}] * 60 + [{"text": "a"}] * 5
    lines += [{"text": "abc", "conversations": [{"role": "user", "content": "hi"}]}] * 2
    (path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (path / ".b.jsonl").touch()
    packed = 'hidden: 1 (.b.jsonl); documents without text: 60; "conversations" beside a "text", which is read: 2'
    got = source(path, "packed").description
    assert (got["left out"], got["documents"]) == (packed, 15)
    padded = source(path).description["left out"]
    assert padded == f"{packed}; documents of one token, which have no target and make no row: 5"


def test_nothing_is_said_where_nothing_is_left_out(documents: Path) -> None:
    assert "left out" not in source(documents, "packed").description

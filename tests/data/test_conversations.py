"""Conversations: the forms that are read, what is counted and not dropped, and which tokens are learned."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from samout_train.checkpoint import inspect_path
from samout_train.config import CONF
from samout_train.data import ROLES, JsonlReader, Source, learned_tokens
from samout_train.data.text.documents import Special
from samout_train.data.text.jsonl import jsonl
from samout_train.training import build_trainer

SAID = [("user", "hi"), ("assistant", "hello"), ("user", "bye"), ("assistant", "ciao")]
OPENAI = {"messages": [{"role": role, "content": content} for role, content in SAID]}
READ = "<|sos|><|user|>hi<|agent|>hello<|user|>bye<|agent|>ciao"
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def read(path: Path, *documents: Any, **settings: Any) -> tuple[str, dict[str, int]]:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents), "utf-8")
    (piece,) = JsonlReader.of(ROLES, **settings).read(path)
    return "".join(part.token if isinstance(part, Special) else part for part in piece.parts), piece.left_out


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        (OPENAI, READ),
        ({"conversations": OPENAI["messages"]}, READ),
        (
            {"conversations": [{"from": {"user": "human", "assistant": "gpt"}[r], "value": c} for r, c in SAID]},
            READ,
        ),
        ({"instruction": "bye", "output": "ciao", "history": [["hi", "hello"]]}, READ),
        ({"instruction": "say", "input": "hi", "output": "hi"}, "<|sos|><|user|>say\nhi<|agent|>hi"),
        ({"instruction": "say", "input": "", "output": "hi"}, "<|sos|><|user|>say<|agent|>hi"),
        ({"system": "be kind", **OPENAI}, READ.replace("<|sos|>", "<|sos|><|history|>be kind")),
        (
            {"messages": [{"role": "developer", "content": "a"}, {"role": "tool", "content": "b"}]},
            "<|sos|><|history|>a<|history|>b",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, "<|sos|><|user|>hi"),
    ],
)
def test_each_form_becomes_turns_behind_the_tokens_of_their_roles(tmp_path: Path, document: Any, wanted: str) -> None:
    assert read(tmp_path / "a.jsonl", document) == (wanted, {})


EXTRA = {
    "tools": [{"name": "add"}],
    "messages": [
        {"role": "user", "content": "1 + 1", "name": "me"},
        {"role": "assistant", "content": None, "reasoning_content": "a sum", "tool_calls": [CALL]},
        {"role": "tool", "content": [{"type": "text", "text": "2"}, {"type": "image_url"}]},
    ],
}


def test_what_is_beside_what_is_said_is_counted(tmp_path: Path) -> None:
    text, left_out = read(tmp_path / "a.jsonl", EXTRA, EXTRA)
    assert text == "<|sos|><|user|>1 + 1<|agent|><|history|>2" * 2
    assert left_out == {
        '"name" of a turn': 2,
        '"reasoning_content" of a turn': 2,
        '"tool_calls" of a turn': 2,
        "parts of a content that are not text": 2,
        '"tools" of a conversation': 2,
    }


def test_or_written_by_the_template_of_hermes_and_qwen(tmp_path: Path) -> None:
    text, left_out = read(tmp_path / "a.jsonl", EXTRA, extra_fields="write")
    assert text == (
        '<|sos|><|history|><tools>\n{"name": "add"}\n</tools><|user|>1 + 1<|agent|><think>\na sum\n</think>\n\n'
        '<tool_call>\n{"name": "add", "arguments": "{\\"a\\": 1}"}\n</tool_call><|history|>2'
    )
    assert left_out == {'"name" of a turn': 1, "parts of a content that are not text": 1}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"messages": [{"from": "human"}]}, 'a turn of "messages" must be'),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, 'a turn of "messages" must be'),
        ({"instruction": "a", "output": "b", "input": 3}, '"input" must be a string'),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, '"history" must be a list of pairs'),
        (
            {"instruction": "a"},
            'has neither a string "text" nor a list "conversations"; it has: instruction; a',
        ),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_line(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"a\.jsonl line 1: ") as caught:
        read(tmp_path / "a.jsonl", document)
    assert message in str(caught.value)


def test_the_roles_are_those_of_the_yaml() -> None:
    assert yaml.safe_load((CONF / "data" / "jsonl.yaml").read_text("utf-8"))["roles"] == ROLES


@pytest.mark.parametrize("together", [1, 2, 5, 100])
def test_what_the_agent_says_and_the_token_behind_it_is_learned(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr("samout_train.data.text.learned.TOKENS_TOGETHER", together)
    # sos user a  agent b  pad c user sos history d agent agent e  sos user
    tokens = [0, 1, 5, 2, 6, 3, 7, 1, 0, 4, 8, 2, 2, 9, 0, 1]
    wanted = [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0]
    assert learned_tokens(np.array(tokens, dtype=np.uint16)).tolist() == wanted


def source(path: Path, layout: str, **changes: Any) -> Source:
    settings: dict[str, Any] = {
        "pattern": "**/*.jsonl",
        "roles": ROLES,
        "vocabulary": "characters",
        "vocab_size": 300,
        "vocabulary_path": None,
        "seq_len": 4,
        "ignore_index": 3,
        "seed": 0,
        "learn": "agent",
    }
    return jsonl(path=str(path), layout=layout, **(settings | changes))


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    path = tmp_path / "talks.jsonl"
    lines = []
    for number in range(12):
        asked, answer = "ab" * (number % 4 + 1), "xyz"[: number % 3 + 1]
        lines.append(json.dumps({"instruction": asked, "output": answer}) + "\n")
    path.write_text("".join([*lines, json.dumps({"text": "no talk"}) + "\n", lines[0]]), "utf-8")
    return path


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_each_learned_token_is_a_counted_target_once(talks: Path, layout: str) -> None:
    got = source(talks, layout)
    assert got.vocabulary is not None
    counted = ""
    for rows in (got.train, got.validation):
        inputs, targets = rows.split(rows.windows(0, rows.num_windows))
        counted += got.vocabulary.decode(targets[targets != 3].tolist())
        order = np.array([1, 0, 1])
        if layout == "padded":
            assert torch.equal(rows.take(order, 3), rows.windows(0, 99)[torch.from_numpy(order)])
        shifted = targets[:, :-1]
        assert torch.equal(shifted[shifted != 3], inputs[:, 1:][shifted != 3])
    answers = ["xyz"[: number % 3 + 1] + "<|user|>" for number in (*range(12), 0)]
    assert counted == "".join(answers)
    assert "documents in which no agent speaks: 1" in str(got.description["left out"])
    assert str(got.description["learned"]).startswith(f"{sum(number % 3 + 2 for number in (*range(12), 0))} tokens")


def test_without_an_agent_there_is_nothing_to_learn(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "one two three"}) + "\n" + json.dumps({"text": "four"}) + "\n", "utf-8")
    with pytest.raises(ValueError, match=r"data\.learn=agent: no role in .* is the agent's"):
        source(path, "padded")


def test_accumulated_gradients_are_those_of_the_whole_batch(talks: Path) -> None:
    words = ["data=jsonl", f"data.path={talks}", "data.layout=padded", "data.learn=agent", "data.seq_len=6"]
    words += ["data.batch_size=12", "device=cpu", "precision=fp32", "trainer.clip_grad_norm=null", "optimizer=adam"]
    words += ["model.hidden_size=12", "model.num_heads=2", "model.num_layers=1", "model.dropout=0"]
    whole, parts = build_trainer(words), build_trainer([*words, "trainer.accumulate=4"])
    ids = whole.training_step.batches.get(0).ids_RT
    counts = [int((whole.source.train.split(part)[1] != 3).sum()) for part in ids.chunk(4)]
    assert len(set(counts)) > 1  # so that a mean of means would be another loss
    assert abs(float(whole.step()) - float(parts.step())) < 1e-6
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert float((one.grad - other.grad).abs().max()) < 1e-6


def test_inspect_shows_two_conversations_with_what_is_learned_marked(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    read(path, {"text": "no talk"}, {**OPENAI, "id": 3}, {"instruction": "a\nb", "output": "c" * 999}, OPENAI)
    found = inspect_path(path)
    assert found.known and not found.damaged
    rows = dict(found.rows)
    assert rows["documents"] == "4, 3 of them conversations" and rows["left out"] == '"id" of a conversation: 1'
    assert rows["conversation 1"] == ("<|sos|><|user|>hi<|agent|>[[hello<|user|>]]bye<|agent|>[[ciao<|user|>]]")
    assert rows["conversation 2"] == f"<|sos|><|user|>a\\nb<|agent|>[[{'c' * 200} ... {'c' * 200}<|user|>]]"
    assert "conversation 3" not in rows
    path.write_text("no json\n", "utf-8")
    assert inspect_path(path).damaged

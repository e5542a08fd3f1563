"""The data of experiment=chat_small: held-out questions ask for learned facts in learned phrasings."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from samout_train.checkpoint import inspect_path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "chat_small.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chat_small", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_held_out_question_is_of_a_learned_fact_and_none_is_learned(script: ModuleType, seed: int) -> None:
    learned, held_out = script.questions(seed)
    assert len(held_out) == 200 and len(learned) + 200 == 90 * len(script.facts())
    texts = {question.text for question in learned}
    assert len(texts) == len(learned) and not texts & {question.text for question in held_out}
    for question in held_out:
        fact, answer, phrasing = next(
            (fact, answer, phrasing)
            for fact in script.facts()
            for answer, phrasings in script.QUESTIONS.items()
            for phrasing in phrasings
            if phrasing.format(**fact) == question.text
        )
        assert question.answer == answer.format(**fact)
        assert any(other.format(**fact) in texts for other in script.QUESTIONS[answer])
        assert any(phrasing.format(**other) in texts for other in script.facts())


def test_no_held_out_question_is_in_a_conversation(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "NUM_CONVERSATIONS", 300)
    monkeypatch.setattr(script, "NUM_PASSES", 2)
    script.write_data(tmp_path, 0)
    asked = {json.loads(line)["instruction"] for line in (tmp_path / "held_out.jsonl").read_text("utf-8").splitlines()}
    turns = 0
    for line in (tmp_path / "chat.jsonl").read_text("utf-8").splitlines():
        messages = json.loads(line)["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert not asked & {message["content"] for message in messages}
        turns += len(messages) // 2
    assert len(asked) == 200 and 300 < turns < 900
    assert "404 means Not Found.\n" in (tmp_path / "text.txt").read_text("utf-8")
    assert "[[" in dict(inspect_path(tmp_path / "chat.jsonl").rows)["conversation 1"]

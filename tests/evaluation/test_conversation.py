"""A conversation carries the state: nothing is read twice, and what it says is what re-reading all of it would say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samout_train import build_model
from samout_train.data import ROLES, SPECIAL_TOKENS, Bytes, Characters, Turn
from samout_train.data.text.documents import JsonlReader, Special
from samout_train.evaluation import Conversation, Sampling, Template, as_json, turns_of_json
from samout_train.evaluation.conversation import AGENT_ID, HISTORY_ID, USER_ID, penalise
from samout_train.ops import use_kernels

GREEDY = Sampling(temperature=0, max_new_tokens=7)
NAMES = ["v8", "maxplus", "transformer", "lstm"]


@pytest.fixture(autouse=True)
def without_compiling() -> None:
    use_kernels("reference")


class Counted(nn.Module):
    """A model that counts the tokens it reads."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.read = model, 0

    def forward(self, ids: Tensor, state: Any = None) -> Any:
        self.read += ids.numel()
        return self.model(ids, state)


class Scripted(nn.Module):
    """Says given ids one after another, whatever it reads."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__()
        self.ids, self.weight = ids, nn.Parameter(torch.zeros(1))

    def forward(self, ids: Tensor, state: Any = None) -> Any:
        logits = torch.zeros(*ids.shape, 300)
        logits[:, -1, self.ids[0]] = 9.0
        self.ids = self.ids[1:]
        return logits, state


def tiny(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_layers": 2, **settings}
    if name != "lstm":
        sizes["num_heads"] = 2
    return build_model(name, vocab_size=len(Bytes()), **sizes).eval()


def conversation(model: nn.Module, **settings: Any) -> Conversation:
    return Conversation(model, Bytes(), Template(**settings))


def said(of: Conversation, text: str, sampling: Sampling = GREEDY, **settings: Any) -> str:
    return "".join(of.answer(text, sampling, **settings))


def read_again(model: nn.Module, ids: list[int]) -> list[int]:
    """The ids that follow when each token is found by reading all before it."""
    found: list[int] = []
    for _ in range(GREEDY.max_new_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids + found]))[0][0, -1].double()
        logits[3] = -torch.inf
        if int(logits.argmax()) < len(SPECIAL_TOKENS):
            break
        found.append(int(logits.argmax()))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_reading_everything_again_and_nothing_is_read_twice(name: str) -> None:
    model = Counted(tiny(name)).eval()
    talk = conversation(model)
    talk.reset("be kind")
    for question in ("hi", "and ünow?", "", "bye"):
        before = list(talk.ids)
        said(talk, question)
        assert talk.ids[: len(before)] == before and talk.fed <= len(talk.ids)
        asked = [*before, USER_ID, *Bytes().encode(question).tolist(), AGENT_ID]
        assert model.read == talk.fed
        assert talk.ids == asked + read_again(model.model, asked)
    assert [turn.role for turn in talk.turns] == ["system", *["user", "assistant"] * 4]
    assert talk.ids[0] == HISTORY_ID


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_that_is_stopped_counts_as_far_as_it_came(name: str) -> None:
    model = tiny(name)
    talk = conversation(model)
    left = iter([False, False, True])
    said(talk, "hi", stops=lambda: next(left))
    assert len(talk.ids) == 4 + 2 and talk.turns[-1] == Turn("assistant", Bytes().decode(talk.ids[-2:]))
    pieces = talk.answer("again", GREEDY)  # and so does one that nobody asks on for
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    asked = [*talk.ids, USER_ID, *Bytes().encode("so").tolist(), AGENT_ID]
    said(talk, "so")
    assert talk.ids == asked + read_again(model, asked)


@pytest.mark.parametrize("name", NAMES)
def test_undo_takes_back_a_question_and_its_answer(name: str) -> None:
    talk = conversation(tiny(name))
    assert not talk.undo()
    said(talk, "one")
    ids, turns = list(talk.ids), list(talk.turns)
    answer = said(talk, "two")
    assert talk.undo() and talk.ids == ids and talk.turns == turns
    assert said(talk, "two") == answer
    assert talk.undo() and talk.undo() and talk.ids == [] and not talk.undo()


def test_a_saved_conversation_goes_on_with_the_same_answers() -> None:
    model = tiny("v8")
    talk, other = conversation(model), conversation(model)
    said(talk, "one")
    kept = turns_of_json(as_json(talk.turns))
    assert kept == talk.turns
    other.load([Turn("user", "one"), Turn("assistant", "ok")])
    assert other.undo() and other.turns == []
    other.load([Turn("user", "one"), Turn("assistant", "ok")])
    before = list(other.ids)
    said(other, "two")
    asked = [*before, USER_ID, *Bytes().encode("two").tolist(), AGENT_ID]
    assert other.ids == asked + read_again(model, asked)


@pytest.mark.parametrize("text", ["", "[]", '{"messages": [1]}', '{"messages": [{"role": "user", "content": 3}]}', "["])
def test_what_is_no_conversation_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no conversation"):
        turns_of_json(text)


def test_an_answer_ends_at_a_role_and_is_cut_where_there_is_none() -> None:
    a, b = (int(index) for index in Bytes().encode("ab"))
    talk = conversation(Scripted([a, b, USER_ID, b, a, HISTORY_ID, *[a] * 20]))
    assert said(talk, "x") == "ab" and not talk.was_cut
    assert said(talk, "x") == "ba" and not talk.was_cut
    assert said(talk, "x") == "a" * 7 and talk.was_cut
    euro = [int(index) for index in Bytes().encode("€")]
    assert list(conversation(Scripted([*euro, USER_ID])).answer("x", GREEDY)) == ["€"]
    assert said(conversation(Scripted([*euro[:2], USER_ID])), "x") == "\ufffd"


def test_a_character_that_the_vocabulary_lacks_changes_nothing() -> None:
    talk = Conversation(Scripted([]), Characters([*SPECIAL_TOKENS, "a"]), Template(begins_with_sos=True))
    talk.reset("a")
    for change in (lambda: talk.answer("é", GREEDY), lambda: talk.reset("é"), lambda: talk.load([Turn("user", "é")])):
        with pytest.raises(ValueError, match="character 'é' at position 0 is not in the vocabulary"):
            change()
    with pytest.raises(ValueError, match="role 'boss' is unknown"):
        talk.load([Turn("boss", "a")])
    assert talk.ids == [0, HISTORY_ID, 5] and talk.turns == [Turn("system", "a")]


def test_a_conversation_beyond_the_room_of_the_model_is_refused() -> None:
    talk = conversation(tiny("transformer", max_seq_len=12))
    said(talk, "abc")
    assert len(talk.ids) == 12 and talk.was_cut
    with pytest.raises(ValueError, match=r"tokens, and this model has room for 12"):
        talk.answer("d", GREEDY)


def test_the_state_of_a_running_maximum_does_not_grow() -> None:
    talk = conversation(tiny("v8"))
    said(talk, "hi")
    first = talk.state_bytes()
    said(talk, "a much longer question " * 9)
    assert talk.state_bytes() == first > 0


def test_recent_tokens_become_less_probable_whatever_their_sign() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0, -1.0], dtype=torch.float64)
    penalise(logits, [0, 1, 0], 2.0)
    assert logits.tolist() == [1.0, -4.0, 1.0, -1.0]
    generator = torch.Generator()
    flat = torch.zeros(300)
    flat[10], flat[11] = 3.0, 2.0
    draw = Sampling(temperature=0, repetition_penalty=2.0, penalty_window=2).draw
    assert draw(flat, [10], generator) == 11 and draw(flat, [10, 20, 30], generator) == 10
    assert flat[10] == 3.0  # the caller's logits stay
    with pytest.raises(ValueError, match="repetition_penalty"):
        Sampling(repetition_penalty=0)


def test_line_ends_are_folded_as_the_text_of_the_run_was() -> None:
    talk = conversation(Scripted([USER_ID]), line_ends="fold")
    said(talk, "a\r\nb\rc")
    assert Bytes().decode(talk.ids[1:-1]) == "a\nb\nc"


@pytest.mark.parametrize("own", [{}, {"system": "<|user|>", "tool": "<|user|>", "boss": "<|history|>"}])
def test_a_conversation_has_the_tokens_that_the_text_of_the_run_has(tmp_path: Path, own: dict[str, str]) -> None:
    roles = ROLES | own
    turns = [Turn(role, f"I am {role}") for role in roles]
    (tmp_path / "a.jsonl").write_text(json.dumps(json.loads(as_json(turns))) + "\n", "utf-8")
    written: list[int] = []
    for piece in JsonlReader.of(roles, "keep").read(tmp_path / "a.jsonl"):
        for part in piece.parts:
            if isinstance(part, Special):
                written.append(SPECIAL_TOKENS.index(part.token))
            else:
                written += Bytes().encode(part).tolist()
    template = Template.of({"layout": "packed", "roles": own})
    assert template.begin + template.ids_of(turns, Bytes()) == written
    talk = Conversation(tiny("v8"), Bytes(), template)
    talk.load(turns)
    assert talk.ids == written and written.count(USER_ID) == 2 + 2 * bool(own)

"""Multiple choice: what a line may look like, scores worked out by hand, and what can be told from guessing."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train import train
from samout_train.checkpoint import load_run
from samout_train.cli import evaluate
from samout_train.data import Characters, Choices, Question
from samout_train.data.text.choices import question_of
from samout_train.evaluation import Accuracy, measure_choices
from samout_train.evaluation.choices import against_guessing

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("entry", "answer"),
    [
        ({"question": "q", "choices": ["a", "b", "c"], "answer": 2}, 2),
        ({"question": "q", "choices": ["a", "b", "c"], "answer": "b"}, 1),
        ({"question": "q", "choices": ["x", "y", "z"], "answer": "C"}, 2),
        ({"question": "q", "choices": ["x", "y", "z"], "answer": "0"}, 0),
        ({"question": "q", "choices": ["2", "1", "0"], "answer": "2"}, 0),
        ({"question": "q", "choices": ["2", "1", "0"], "answer": 2}, 2),
        ({"question": "q", "choices": ["B", "A"], "answer": "A"}, 1),
        ({"ctx": "q", "endings": ["x", "y", "z", "w"], "label": "3"}, 3),
        ({"question": "q", "A": "x", "B": "y", "C": "z", "D": "w", "answer": "D"}, 3),
    ],
)
def test_the_answer_is_a_text_a_letter_or_a_number(entry: dict[str, Any], answer: int) -> None:
    assert question_of(entry).answer == answer and question_of(entry).text == "q"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([], "is no object"),
        ({"choices": ["a", "b"], "answer": 0}, "has no text as question or ctx or query"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "has no two choices or more"),
        ({"question": "q", "choices": ["a", ""], "answer": 0}, "has no two choices or more"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "answer 2 is not one of its 2 choices"),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, "answer True is not one"),
        ({"question": "q", "choices": ["a", "b"]}, "answer None is not one of its 2 choices: .* a letter from A to B"),
        ({"question": "q", "choices": ["a", "a"], "answer": "a"}, "answer 'a' is not one"),
    ],
)
def test_what_is_no_question_is_refused(entry: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        question_of(entry)


def test_files_of_all_kinds_have_the_same_questions(tmp_path: Path) -> None:
    entries = [{"question": f"q{n}", "choices": ["a", "b"], "answer": n % 2} for n in range(5)]
    lines = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
    (tmp_path / "a.jsonl").write_bytes(lines + b"\n")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    parquet.write_table(pa.Table.from_pylist(entries), tmp_path / "a.parquet")
    found = []
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        found.append(Choices(path=str(tmp_path / name), separator=" ", documents=None, seed=0).questions()[0])
    assert found[0] == found[1] == found[2] and found[0][3] == Question("q3", ("a", "b"), 1)
    (tmp_path / "a.jsonl").write_bytes(lines + b'{"question": "q"}\n')
    with pytest.raises(ValueError, match=r"data.path=.*a.jsonl: line 6: has no two choices"):
        Choices(path=str(tmp_path / "a.jsonl"), separator=" ", documents=None, seed=0).questions()


class Fixed(nn.Module):
    """A model that gives each id a fixed probability, whatever comes before."""

    max_seq_len: int | None = None

    def __init__(self, shares: dict[int, float], vocab_size: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.full((vocab_size,), -1e9))
        for index, share in shares.items():
            self.logits.data[index] = math.log(share)
        self.read: list[int] = []

    def forward(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        self.read.append(ids.shape[1])
        return self.logits.expand(*ids.shape, -1), state


VOCABULARY = Characters.of_text("ab ?")
SHARES = {"a": 1 / 2, "b": 1 / 4, " ": 1 / 8, "?": 1 / 8}


def model(room: int | None = None) -> Fixed:
    shares = {int(VOCABULARY.encode(character)[0]): share for character, share in SHARES.items()}
    made = Fixed(shares, len(VOCABULARY))
    made.max_seq_len = room
    return made


def measured(questions: list[Question], room: int | None = None, **settings: Any) -> Any:
    given: dict[str, Any] = {"separator": " ", "documents": False, "device": CPU} | settings
    return measure_choices(model(room), VOCABULARY, questions, **given)


def test_scores_are_those_worked_out_by_hand() -> None:
    """a costs 1 bit, b 2, the blank 3: " b" is 5 bits, " aaa" 6, so b is likelier, and aaa a byte (2 against 5)."""
    found = measured([Question("ab?", ("b", "aaa"), 0)] * 60 + [Question("ab?", ("b", "aaa"), 1)] * 40)
    assert (found.likelihood.right, found.normalised.right) == (60, 40) and found.chance == 0.5
    assert found.likelihood.answers == 100
    mixed = measured([Question("?", ("a", "b"), 0)] * 50 + [Question("?", ("b", "bb", "bbb", "a"), 3)] * 50)
    assert mixed.likelihood.right == 100 and mixed.chance == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_what_cannot_be_scored_is_left_out_and_counted() -> None:
    good = [Question("ab?", ("a", "b"), 0)] * 100
    found = measured([*good, Question("ab?", ("a", "c"), 0), Question("a", ("a" * 9, "b"), 0)], room=6)
    assert (found.unknown, found.too_long, found.shortened, found.likelihood.answers) == (1, 1, 0, 100)
    long = measured([Question("ab?" * 9, ("a", "b"), 0)] * 100, room=6)
    assert long.shortened == 100 and long.likelihood.right == 100
    assert any("read without their beginning" in line for line in long.lines())
    with pytest.raises(
        ValueError, match=r"99 questions can be scored, and an accuracy from fewer than 100 says nothing"
    ):
        measured(good[:99])


def test_a_model_is_not_given_more_than_it_has_room_for() -> None:
    made = model(6)
    questions = [Question("ab?" * length, ("a", "bb"), 0) for length in range(1, 101)]
    measure_choices(made, VOCABULARY, questions, separator=" ", documents=True, device=CPU)
    assert max(made.read) == 6


@pytest.mark.parametrize(
    ("right", "words"),
    [(20, "not distinguishable from guessing"), (60, "better than guessing"), (2, "worse than guessing")],
)
def test_an_accuracy_is_compared_with_guessing_by_its_interval(right: int, words: str) -> None:
    """Of 100 answers at a chance of 1/4: Wilson's interval of 20 is 0.133 to 0.289, of 60 0.502 to 0.691."""
    assert against_guessing(Accuracy(right, 100), 0.25) == words


@pytest.mark.slow
def test_evaluate_scores_choices_as_the_model_does_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "".join(f"line {number % 17} of it. " for number in range(300))
    (tmp_path / "text.txt").write_text(text)
    words = ["model=v8", "model.hidden_size=8", "model.num_heads=2", "model.num_layers=1", "device=cpu"]
    words += ["data=text", f"data.path={tmp_path / 'text.txt'}", "data.seq_len=16", "data.batch_size=4"]
    quick = ["kernels=reference", "~callbacks.sample", "~callbacks.lengths", "~callbacks.tensorboard"]
    train([*words, *quick, "trainer=debug", f"run_dir={tmp_path / 'run'}"])
    questions = [Question("line " * (1 + n % 4), (f"{n % 10} of it", "it of", f"{n % 7}"), n % 3) for n in range(100)]
    entries = [{"question": one.text, "choices": one.choices, "answer": one.answer} for one in questions]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    loaded = load_run(tmp_path / "run")
    assert loaded.vocabulary is not None
    right = 0
    for one in questions:
        scores = []
        for choice in one.choices:
            before, behind = (
                torch.from_numpy(loaded.vocabulary.encode(part)).long() for part in (one.text, " " + choice)
            )
            ids = torch.cat([before, behind])
            with torch.inference_mode():
                logits = loaded.model(ids[None, :-1])[0][0, len(before) - 1 :]
            scores.append(-float(F.cross_entropy(logits, behind, reduction="sum")))
        right += scores.index(max(scores)) == one.answer
    words = [f"run={tmp_path / 'run'}", "device=cpu", "kernels=reference", "data=choices", f"data.path={file}"]
    capsys.readouterr()
    assert evaluate.evaluate(words) == 0
    out = capsys.readouterr().out
    (result,) = (tmp_path / "run" / "evaluate").glob("choices-questions.jsonl-*/evaluation.json")
    found = json.loads(result.read_text())
    assert found["likelihood"]["right"] == right and found["chance"] == pytest.approx(1 / 3)
    assert "chance                               0.333" in out and " guessing" in out and not found["documents"]
    assert evaluate.evaluate([*words, "lengths=[16]"]) == 2
    assert evaluate.evaluate([*words[:-1], f"data.path={tmp_path / 'text.txt'}"]) == 2
    assert "line 1 is not JSON" in capsys.readouterr().err

"""Accuracies: what is counted, Wilson's interval, and what a run on a task reports."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from samout_train import build_model, train
from samout_train.data.source import LabelledRows
from samout_train.data.tasks.base import IGNORED
from samout_train.evaluation import Accuracy
from samout_train.evaluation.accuracy import NORMAL_QUANTILE
from samout_train.models import next_token_nats
from tests.support.evaluation import evaluator_of

CPU = torch.device("cpu")
TINY = ["model=gru", "model.hidden_size=16", "model.num_layers=1", "device=cpu", "data=parity", "data.seq_len=5"]


class Says(nn.Module):
    """Says the token that it reads, plus one, with V ids; with a head of its own or without."""

    def __init__(self, vocab_size: int, with_head: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.eye(vocab_size).roll(1, 0))
        if with_head:
            self.head_weight = self.table

    def forward(self, ids_BT: Tensor, state: None = None, *, return_hidden: bool = False) -> tuple[Tensor, None]:
        one_hot_BTV = nn.functional.one_hot(ids_BT, len(self.table)).float()
        return (one_hot_BTV if return_hidden else one_hot_BTV @ self.table.t()), None


def test_wilsons_interval_is_where_the_score_test_ends() -> None:
    """By definition: the shares at which what was seen lies NORMAL_QUANTILE standard deviations away."""
    for right, answers in [(0, 100), (50, 100), (99, 100), (137, 500), (2000, 2000)]:
        found = Accuracy(right, answers)
        for end in found.interval:
            if 1e-9 < end < 1 - 1e-9:
                spread = math.sqrt(end * (1 - end) / answers)
                assert abs(found.share - end) == pytest.approx(NORMAL_QUANTILE * spread, rel=1e-9)
    assert Accuracy(0, 100).interval[0] == pytest.approx(0) and Accuracy(100, 100).interval[1] == pytest.approx(1)
    # Wilson's interval for 8 of 10 is widely printed as 0.490 to 0.943: the same formula at a hundred times of that.
    low, high = Accuracy(80, 100).interval
    assert (round(low, 3), round(high, 3)) == (0.711, 0.867)


@pytest.mark.parametrize("answers", [0, 8, 99])
def test_few_answers_are_refused(answers: int) -> None:
    with pytest.raises(ValueError, match=f"needs 100 answers or more, and there are {answers}: use more rows"):
        Accuracy(answers, answers)


@pytest.mark.parametrize("with_head", [False, True])
@pytest.mark.parametrize("rows_per_batch", [1, 7, 1000])
def test_answers_are_counted_where_they_are_asked_for_only(with_head: bool, rows_per_batch: int) -> None:
    generator = np.random.default_rng(0)
    inputs = torch.from_numpy(generator.integers(5, size=(60, 9)))
    labels = torch.full_like(inputs, IGNORED)
    right = answers = 0
    for row in range(60):
        for place in generator.choice(9, 3, replace=False):
            wrong = bool(generator.integers(2))
            labels[row, place] = (int(inputs[row, place]) + 1 + wrong) % 5
            right, answers = right + (not wrong), answers + 1
    model = Says(5, with_head).train()
    rows = LabelledRows(inputs, labels)
    found = evaluator_of(model, rows, ignore_index=IGNORED).accuracy(rows, rows_per_batch)
    assert (found.right, found.answers) == (right, answers) and answers == 180
    assert model.training


def test_losses_of_few_targets_are_those_of_all_logits() -> None:
    model = build_model("v8", vocab_size=37, hidden_size=24, num_heads=4, num_layers=2, pad_id=None, dropout=0.0)
    ids = torch.randint(37, (6, 11), generator=torch.Generator().manual_seed(0))
    targets = torch.full_like(ids, IGNORED)
    targets[:, 3::5] = ids[:, 3::5]
    gradients = {}
    for most in (None, 12, 20):
        model.zero_grad()
        nats = next_token_nats(model, ids, targets, IGNORED, most_targets=most)
        nats.backward()
        gradients[most] = [nats.detach(), *(parameter.grad for parameter in model.parameters())]
    for most in (12, 20):  # as many as there are, and more: the others are ignored
        for one, other in zip(gradients[None], gradients[most], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)  # float32, sums in another order


@pytest.mark.slow
def test_a_task_reports_its_accuracy_by_length_and_says_what_chance_is(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = [*TINY, "data.test_lengths=[5,9]", "data.num_test_sequences=200", "optimizer.lr=0.02", "data.batch_size=16"]
    summary, model = train([*words, "trainer.max_steps=120", "trainer.eval_every_n_steps=60", f"run_dir={run_dir}"])
    assert summary["chance"] == 0.5 and set(summary["accuracy"]) == {"validation", "length_5", "length_9"}
    for name, found in summary["accuracy"].items():
        assert found["answers"] == (1000 if name == "validation" else 200)
        assert found["low"] <= found["share"] <= found["high"]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    at = {line["step"]: line for line in lines}
    assert at[120]["val/accuracy"] == summary["accuracy"]["validation"]["share"]
    assert at[120]["val_accuracy/length_9"] == summary["accuracy"]["length_9"]["share"]
    assert "val/accuracy" in at[60] and "val_accuracy/length_9" not in at[60]
    log = (run_dir / "samout_train.log").read_text()
    assert "accuracy, length 9" in log and "chance" in log and "of 200 answers" in log
    # By hand, one row at a time.
    from samout_train.data.tasks.parity import parity

    source = parity(seq_len=5, test_lengths=[9], num_sequences=200, num_test_sequences=200, seed=0)
    inputs, labels = source.tests["length_9"].split(source.tests["length_9"].windows(0, 200))
    right = sum(
        int(model.eval()(row[None])[0][0, -1].argmax()) == label[-1] for row, label in zip(inputs, labels, strict=True)
    )
    assert right == summary["accuracy"]["length_9"]["right"]


@pytest.mark.slow
def test_a_run_can_end_when_its_task_is_solved(tmp_path: Path) -> None:
    words = [*TINY, "data.test_lengths=[5]", "data.num_test_sequences=100", "optimizer.lr=0.02", "data.batch_size=32"]
    words += ["trainer.eval_every_n_steps=20", "schedule=constant", "callbacks.accuracy.solved_evaluations=2"]
    summary, _ = train([*words, "trainer.max_steps=1000", f"run_dir={tmp_path / 'run'}"])
    assert summary["steps"] < 1000 and summary["accuracy"]["validation"]["share"] >= 0.999
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    shares = [line["val/accuracy"] for line in lines if "val/accuracy" in line]
    solved = [share >= 0.999 for share in shares]
    assert solved[-2:] == [True, True] and not any(a and b for a, b in pairwise(solved[:-1]))

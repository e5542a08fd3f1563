"""The evaluator and the bracket for evaluation mode: what they leave behind, and a metric of one's own."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from samout_train import build_model
from samout_train.data import MatrixRows
from samout_train.evaluation import Evaluator, generate_tokens, in_order
from samout_train.models import evaluating
from tests.support.evaluation import evaluator_of
from tests.support.program import samout

IDS = torch.randint(4, 40, (8, 10), generator=torch.Generator().manual_seed(0))
METRIC = """
from samout_train import Callback


class TopFive(Callback):
    def on_start(self, context):
        self.evaluator, self.batches = context.evaluator, context.fixed_batches

    def on_evaluate(self, step, *, is_last, check_stop):
        evaluator, right, answers = self.evaluator, 0, 0
        with evaluator.reading():
            for ids in self.batches:
                check_stop()
                inputs, targets = evaluator.source.validation.split(ids.to(evaluator.device))
                best = evaluator.model(inputs)[0].topk(5).indices
                right += int((best == targets[..., None]).any(-1).sum())
                answers += targets.numel()
        self.share = right / answers
        return {"val/top_five": self.share}

    def figures(self):
        return {"top_five": self.share}
"""


def small() -> nn.Module:
    return build_model("v8", vocab_size=40, hidden_size=8, num_heads=2, num_layers=1, dropout=0.5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("inference", [True, False])
def test_the_bracket_puts_the_mode_back_also_after_an_error(training: bool, inference: bool) -> None:
    model = small().train(training)
    with pytest.raises(KeyError), evaluating(model, inference=inference):
        assert not any(module.training for module in model.modules())
        assert torch.is_inference_mode_enabled() == inference
        raise KeyError
    assert all(module.training == training for module in model.modules())
    assert not torch.is_inference_mode_enabled()


def test_whoever_takes_generated_tokens_is_not_in_inference_mode() -> None:
    model = small().train()
    for _ in generate_tokens(model, [5], max_new_tokens=3, temperature=0, top_k=None, seed=0):
        assert not torch.is_inference_mode_enabled() and not model.training
    assert model.training


def test_an_evaluation_that_is_stopped_leaves_the_model_as_it_was() -> None:
    rows, calls = MatrixRows(IDS), []

    def check_stop() -> None:
        calls.append(len(calls))
        if len(calls) > 2:
            raise InterruptedError

    given = evaluator_of(small().train(), rows)
    evaluator = Evaluator(given.model, given.source, given.device, given.precision, check_stop=check_stop)
    with pytest.raises(InterruptedError):
        evaluator.loss(in_order(rows, 2))
    assert calls == [0, 1, 2] and evaluator.model.training
    with pytest.raises(InterruptedError):
        evaluator.accuracy(rows, 2)
    assert evaluator.model.training


def test_measurements_draw_nothing() -> None:
    evaluator = evaluator_of(small().train(), MatrixRows(IDS))
    before = torch.get_rng_state()
    first = evaluator.loss(in_order(MatrixRows(IDS), 3))
    evaluator.state_health(IDS)
    evaluator.by_position(MatrixRows(IDS), 100, trained_length=9)
    assert torch.equal(torch.get_rng_state(), before)
    assert evaluator.loss(in_order(MatrixRows(IDS), 3)) == first


def test_a_sample_never_asks_for_more_than_a_training_row() -> None:
    model, lengths = small(), []
    model.register_forward_pre_hook(lambda module, given: lengths.append(given[0].shape[1]))
    evaluator = evaluator_of(model, MatrixRows(IDS))  # rows of 9 targets: a half is 4
    ids = evaluator.sample([5, 6, 7, 8, 9, 10], 10, temperature=0, top_k=None, seeds=iter(range(3)))
    assert ids[:6] == [5, 6, 7, 8, 9, 10] and len(ids) == 16
    assert lengths == [4, 1, 1, 1, 4, 1, 1, 1, 4, 1]


@pytest.mark.slow
def test_a_metric_is_one_callback_and_one_yaml(tmp_path: Path) -> None:
    (tmp_path / "top_five.py").write_text(METRIC, "utf-8")
    (tmp_path / "mine" / "callbacks").mkdir(parents=True)
    yaml = "defaults:\n  - default\ntop_five:\n  _target_: top_five.TopFive\n"
    (tmp_path / "mine" / "callbacks" / "with_top_five.yaml").write_text(yaml, "utf-8")
    words = ["--config-dir", "mine", "callbacks=with_top_five", "model=gru", "model.hidden_size=8", "device=cpu"]
    done = samout(tmp_path, *words, "trainer=debug", "data.seq_len=9", "run_dir=run")
    assert done.returncode == 0, done.stderr
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 <= last["val/top_five"] == summary["top_five"] <= 1

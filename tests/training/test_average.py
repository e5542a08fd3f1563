"""The average of the weights: its arithmetic by hand, its warm-up, exact resume, and its export."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from samout_train import train
from samout_train.checkpoint import averaged, find_checkpoint, load_run, read_checkpoint
from samout_train.config import ConfigError
from samout_train.models import ParallelModel
from samout_train.training.average import WeightAverage

TINY = [
    *("model=v8", "device=cpu", "model.hidden_size=8", "model.num_heads=2", "model.num_layers=1", "data=random"),
    *("data.seq_len=9", "data.num_sequences=20", "data.batch_size=4", "data.vocab_size=32", "kernels=reference"),
    *("schedule=constant", "trainer.eval_every_n_steps=1", "trainer.eval_batches=1"),
    *("trainer.ema=50", "~callbacks.tensorboard", "optimizer=muon", "optimizer.lr=0.01"),
]


def one_weight() -> tuple[nn.Module, WeightAverage]:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    shared = ParallelModel(model, parallel="ddp", device=torch.device("cpu"), compile=False)
    return model, WeightAverage(shared, half_life=10.0)


def value(average: WeightAverage) -> float:
    weights: dict[str, Tensor] = average.state_dict()["weights"]
    return float(weights["weight"])


def set_and_update(model: nn.Module, average: WeightAverage, weight: float, tokens: int, *, rises: bool) -> float:
    nn.init.constant_(model.get_parameter("weight"), weight)
    average.update(tokens, rate_rises=rises, held_back=None)
    return value(average)


def test_the_average_is_the_weights_in_the_warm_up_and_then_halves_by_tokens() -> None:
    model, average = one_weight()
    assert set_and_update(model, average, 4.0, 10, rises=True) == 4.0
    assert set_and_update(model, average, 8.0, 10, rises=False) == 6.0  # half after the half-life
    assert set_and_update(model, average, 10.0, 20, rises=False) == 9.0  # a quarter remains after two
    assert set_and_update(model, average, 5.0, 10, rises=True) == 7.0  # a rate that rises later is no warm-up


def test_a_step_that_was_held_back_leaves_the_average() -> None:
    model, average = one_weight()
    nn.init.constant_(model.get_parameter("weight"), 3.0)
    average.update(10, rate_rises=False, held_back=torch.ones(()))
    assert value(average) == 1.0
    average.update(10, rate_rises=False, held_back=torch.zeros(()))
    assert value(average) == 2.0


def test_weights_come_back_bit_for_bit_also_after_an_error() -> None:
    model, average = one_weight()
    nn.init.constant_(model.get_parameter("weight"), 0.1)
    with pytest.raises(KeyError), average.in_place_of_weights():
        assert model.get_parameter("weight").tolist() == [[1.0]]
        raise KeyError
    assert torch.equal(model.get_parameter("weight").detach(), torch.full((1, 1), 0.1))


def test_bfloat16_weights_have_a_float32_average() -> None:
    model = nn.Linear(1, 1, bias=False).bfloat16()
    average = WeightAverage(
        ParallelModel(model, parallel="ddp", device=torch.device("cpu"), compile=False), half_life=1.0
    )
    assert average.state_dict()["weights"]["weight"].dtype == torch.float32


def test_weights_under_two_names_are_averaged_under_both() -> None:
    weights = {"a": torch.zeros(2), "buffer": torch.ones(1)}
    weights["b"] = weights["a"]
    state = averaged(weights, {"a": torch.full((2,), 5.0)})
    assert {name: tensor.tolist() for name, tensor in state.items()} == {"a": [5, 5], "b": [5, 5], "buffer": [1]}


@pytest.mark.nightly
def test_a_stopped_run_resumes_the_average_exactly_and_loads_it(tmp_path: Path) -> None:
    train([*TINY, "trainer.max_steps=6", f"run_dir={tmp_path / 'whole'}"])
    for steps in (4, 6):
        words = [f"trainer.max_steps={steps}", f"run_dir={tmp_path / 'parts'}", "resume=auto"]
        train([*TINY, *words])
    whole, parts = (read_checkpoint(find_checkpoint(tmp_path / name)) for name in ("whole", "parts"))
    for key in ("model", "ema"):
        own, other = (content[key].get("weights", content[key]) for content in (whole, parts))
        assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text("utf-8"))
    assert summary["ema_val_loss_nats"] != summary["val_loss_nats"]
    loaded = load_run(tmp_path / "whole", weights="ema").model.state_dict()
    assert all(torch.equal(loaded[name], average) for name, average in whole["ema"]["weights"].items())
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert "val/ema_loss_nats" in json.loads(lines[-1])


@pytest.mark.slow
def test_a_run_without_an_average_begins_one_when_it_is_resumed(tmp_path: Path) -> None:
    words = [*TINY, f"run_dir={tmp_path / 'run'}"]
    train([*words, "trainer.ema=null", "trainer.max_steps=3"])
    with pytest.raises(ConfigError, match=r"weights=ema.*trainer\.ema"):
        load_run(tmp_path / "run", weights="ema")
    before = read_checkpoint(find_checkpoint(tmp_path / "run"))["model"]
    train([*words, "trainer.ema=1e15", "trainer.max_steps=4", "resume=auto"])
    averages = read_checkpoint(find_checkpoint(tmp_path / "run"))["ema"]["weights"]
    for name, average in averages.items():
        torch.testing.assert_close(average, before[name])

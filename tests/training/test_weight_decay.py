"""The schedule of weight decay: its values by hand, in both optimizers, in the log, and exact on resume."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from samout_train import train
from samout_train.checkpoint import find_checkpoint, read_checkpoint, weights_sha256
from samout_train.training.optimizers.adamw import adamw
from samout_train.training.optimizers.muon import muon
from samout_train.training.weight_decay import WeightDecaySchedule, decayed_group

TINY = [
    *("model=v8", "device=cpu", "model.hidden_size=8", "model.num_heads=2", "model.num_layers=1", "data=random"),
    *("data.seq_len=9", "data.num_sequences=20", "data.batch_size=4", "data.vocab_size=32", "kernels=reference"),
    *("schedule=constant", "~callbacks.tensorboard", "optimizer.weight_decay=0.5", "optimizer.weight_decay_end=0.1"),
]
SETTINGS: dict[str, Any] = {"lr": 0.5, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.8, "weight_decay_end": 0.2}


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3))


def made(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == "adamw":
        return adamw(model, **SETTINGS)
    return muon(model, momentum=0.95, ns_steps=5, **SETTINGS)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_matrices_lose_the_decay_of_the_share_of_the_run_and_vectors_nothing(name: str) -> None:
    model = small()
    optimizer, before = made(name, model), [p.detach().clone() for p in model.parameters()]
    assert WeightDecaySchedule(optimizer).set(0.25) == pytest.approx(0.65)  # 0.75 * 0.8 + 0.25 * 0.2
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for old, parameter in zip(before, model.parameters(), strict=True):
        wanted = old * (1 - 0.5 * 0.65) if parameter.ndim == 2 else old
        torch.testing.assert_close(parameter.detach(), wanted)


def test_a_constant_decay_is_left_alone() -> None:
    parameters = [nn.Parameter(torch.ones(2, 2))]
    assert decayed_group(parameters, 0.1, None) == {"params": parameters, "weight_decay": 0.1}
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.1)
    assert WeightDecaySchedule(optimizer).set(0.5) is None
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.slow
def test_a_resumed_run_continues_the_decay_exactly(tmp_path: Path) -> None:
    words = [*TINY, "optimizer=muon", "trainer.max_steps=4", "checkpoint.every_n_steps=2"]
    train([*words, f"run_dir={tmp_path / 'whole'}"])
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["train/weight_decay"] for line in lines] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    resumed = f"resume={tmp_path / 'whole' / 'checkpoints' / 'step_00000002.pt'}"
    train([*words, resumed, f"run_dir={tmp_path / 'resumed'}"])
    whole, again = (read_checkpoint(find_checkpoint(tmp_path / name)) for name in ("whole", "resumed"))
    assert weights_sha256(again["model"]) == weights_sha256(whole["model"])
    for one, other in zip(whole["optimizer"]["param_groups"], again["optimizer"]["param_groups"], strict=True):
        assert one["weight_decay"] == other["weight_decay"]

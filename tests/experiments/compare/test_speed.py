"""Speeds by length."""

from pathlib import Path

import pytest
import torch
from torch import nn

from samout_train.experiments import candidates
from samout_train.experiments.compare import speed
from samout_train.experiments.compare.speed import measured_speeds, read_speeds, tokens_per_second


class Slow(nn.Module):
    """A model whose passes take a time that is known: a second a row, half of it for the backward pass."""

    def __init__(self, clock: list[float], most: int | None = None) -> None:
        super().__init__()
        self.embedding, self.clock = nn.Embedding(7, 7), clock
        self.rows: list[tuple[int, ...]] = []
        if most is not None:
            self.max_seq_len = most

    def forward(self, ids_BT: torch.Tensor) -> tuple[torch.Tensor, None]:
        self.clock[0] += len(ids_BT)
        self.rows.append(tuple(ids_BT.shape))
        return self.embedding(ids_BT), None


def test_a_speed_is_tokens_over_seconds_of_as_many_tokens_at_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])
    models = {"free": Slow(clock), "short": Slow(clock, most=20)}
    settings = {"vocab_size": 7, "device": torch.device("cpu"), "precision": "fp32"}
    found = tokens_per_second(models, seq_len=4, batch_size=2, **settings)  # type: ignore[arg-type]
    assert {rows * length for rows, length in models["free"].rows} == {256}
    # 64 rows of 4 take 64 seconds, one of 256 takes one
    assert found == {"free": {4: 4.0, 16: 16.0, 64: 64.0, 256: 256.0}, "short": {4: 4.0, 16: 16.0}}
    assert all(parameter.grad is None for parameter in models["free"].parameters())


@pytest.mark.slow
def test_speeds_are_measured_once_for_the_same_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = ["data=random", "device=cpu", "data.seq_len=2", "data.batch_size=2", "model.num_layers=1"]
    models = candidates(["v8", "gru"], [*shared, "model.num_heads=2", "model.hidden_size=4"], None)
    found = measured_speeds(models, tmp_path)
    assert read_speeds(tmp_path) == found and set(found) == {"v8", "gru"} and set(found["v8"]) == {2, 8, 32, 128}

    def refuse(*args: object, **settings: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(speed, "tokens_per_second", refuse)
    assert measured_speeds(models, tmp_path) == found
    with pytest.raises(AssertionError, match="measured again"):
        measured_speeds(models[:1], tmp_path)
    assert read_speeds(tmp_path / "absent") == {}

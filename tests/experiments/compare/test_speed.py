"""Speeds by length."""

from dataclasses import replace
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
    monkeypatch.setattr(speed, "LONGEST_PASS", 255.0)  # four times as long a row could take 4 x 64 seconds
    found = tokens_per_second({"free": models["free"]}, seq_len=4, batch_size=2, **settings)  # type: ignore[arg-type]
    assert found == {"free": {4: 4.0}}


class Broken(Slow):
    """A model that fails when it is moved, or when it is run on rows of this length."""

    def __init__(self, clock: list[float], length: int | None = None) -> None:
        super().__init__(clock)
        self.length = length

    def to(self, *given: object, **named: object) -> "Broken":
        if self.length is None:
            raise ValueError("cannot be moved\nat all")
        return self

    def forward(self, ids_BT: torch.Tensor) -> tuple[torch.Tensor, None]:
        if ids_BT.shape[1] == self.length:
            raise RuntimeError("shapes cannot be multiplied")
        return super().forward(ids_BT)


def test_a_model_that_cannot_be_moved_or_run_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, failed = [0.0], dict[str, str]()
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])
    models = {"stuck": Broken(clock), "late": Broken(clock, 16), "fine": Slow(clock)}
    settings = {"vocab_size": 7, "device": torch.device("cpu"), "precision": "fp32", "failed": failed}
    found = tokens_per_second(models, seq_len=4, batch_size=2, **settings)  # type: ignore[arg-type]
    assert list(found) == ["fine"] and list(found["fine"]) == [4, 16, 64, 256]
    assert failed == {"stuck": "ValueError: cannot be moved", "late": "RuntimeError: shapes cannot be multiplied"}


def test_a_model_that_cannot_be_built_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["data=random", "device=cpu", "data.seq_len=2", "data.batch_size=2", "model.num_layers=1"]
    (one,) = candidates(["gru"], [*shared, "model.hidden_size=4"], None)
    broken = replace(one, label="broken", config={**one.config, "model": {"_target_": "torch.nn.GRU", "no": 1}})
    monkeypatch.setattr(speed, "MOST_ROUNDS", 1)
    assert list(measured_speeds([broken, one], tmp_path)) == list(read_speeds(tmp_path)) == ["gru"]
    assert "speed      of broken is not measured: " in capsys.readouterr().out
    monkeypatch.setattr(speed, "tokens_per_second", lambda *given, **named: {})
    assert measured_speeds([broken, one], tmp_path) == measured_speeds([broken], tmp_path / "alone") == {}
    assert "speed      of broken is not measured: " in capsys.readouterr().out


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

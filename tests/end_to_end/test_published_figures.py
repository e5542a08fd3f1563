"""Figures that the README states and that take minutes to reach."""

from pathlib import Path

import pytest

from samout_train import train


@pytest.mark.nightly
def test_v8_learns_tiny_shakespeare_in_two_thousand_small_steps(shared: Path, tmp_path: Path) -> None:
    summary, _ = train(
        [
            *("model=v8", "model.hidden_size=128", "model.num_heads=4", "model.num_layers=4", "device=cpu"),
            *("data=text", f"data.path={shared / 'data' / 'tinyshakespeare.txt'}", "data.seq_len=64"),
            *("data.batch_size=12", "trainer.max_steps=2000", f"run_dir={tmp_path / 'run'}"),
        ]
    )
    # 2.14 is what was asked for; another implementation of the same model reached 2.09.
    assert summary["val_loss_nats"] <= 2.14
    assert summary["parameters"] == 479_236


@pytest.mark.nightly
@pytest.mark.parametrize(("variant", "first", "last"), [("v8", 6.5, 0.084), ("v1", 2500, None)])
def test_the_published_program_runs_as_published(
    tmp_path: Path, variant: str, first: float, last: float | None
) -> None:
    summary, _ = train([f"experiment=published_{variant}", "device=cpu", f"run_dir={tmp_path / 'run'}"])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [float(line.split('"train/loss_nats": ')[1].split(",")[0]) for line in lines]
    assert len(losses) == summary["steps"] == 10
    # The published figures are of one seed, and rounded ("about").
    assert losses[0] == pytest.approx(first, rel=0.05) and losses == sorted(losses, reverse=True)
    if last is not None:
        assert losses[-1] == pytest.approx(last, rel=0.25)
        assert 6.5 < summary["val_loss_nats"] < 7.1 and summary["floor_nats"] == pytest.approx(4.844, abs=1e-3)

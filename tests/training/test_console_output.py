"""What a run prints: by default and in full, and the table of its steps."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from samout_train import train
from samout_train.config import build
from samout_train.training import RunContext, StepReport
from samout_train.training.callbacks.step_table import SECONDS_BETWEEN_ROWS, StepTable, duration
from samout_train.training.schedules import Limits

TINY = [
    *("model=v8", "data=random", "device=cpu", "model.hidden_size=12", "model.num_heads=2", "model.num_layers=1"),
    *("data.seq_len=9", "data.batch_size=8", "trainer.max_steps=4"),
]
COMMANDS = ("dashboard", "repeat", "resume", "checkpoint", "run")  # as long as a path is
ONLY_VERBOSE = ("FLOPs", "embedding", "bytes of state", "padding", "norm at 9", "without", "to go", " lr ")


def printed(caplog: pytest.LogCaptureFixture, run_dir: Path, *words: str) -> tuple[list[str], dict[str, Any]]:
    caplog.clear()
    with caplog.at_level(logging.INFO):
        summary, _ = train([*TINY, *words, f"run_dir={run_dir}"])
    lines = [line for line in caplog.messages if not line.startswith(("kernels", "products", "cores", "precision"))]
    return lines, summary


@pytest.mark.slow
def test_a_run_prints_what_everyone_needs_and_the_rest_if_verbose(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short, summary = printed(caplog, tmp_path / "short")
    labels = [line[:12].split(" ")[0] for line in short if line[0] != " "]
    header = ["model", "parameters", "data", "device", "run"]
    end = ["steps", "train", "val", "best", "floor", "speed", "memory", "checkpoint", *COMMANDS[:3]]
    assert labels == [*header, *end[:-3], "run", *end[-3:]]
    text = "\n".join(short)
    assert f"{summary['best_val_loss_nats']:.4f} nats at step {summary['best_val_step']}" in text
    assert not any(word in text for word in ONLY_VERBOSE)
    for line in short:
        assert len(line) <= 80 or line.startswith(COMMANDS), line
    whole, other = printed(caplog, tmp_path / "verbose", "callbacks.report.verbose=true")
    assert all(word in "\n".join(whole) for word in ONLY_VERBOSE)
    assert other["weights_sha256"] == summary["weights_sha256"] and other["state_health"] == summary["state_health"]


def test_settings_of_before_have_no_verbose_and_print_the_default() -> None:
    report: Any = build({"_target_": "samout_train.callbacks.report.Report"})
    assert report.verbose is False


def table(*, total_steps: int | None, max_seconds: float | None = None, verbose: bool = False) -> tuple[StepTable, Any]:
    clock = SimpleNamespace(seconds=0.0)
    trainer = SimpleNamespace(limits=Limits(total_steps, max_seconds), clock=clock)
    context = SimpleNamespace(trainer=trainer, first_step=0, source=SimpleNamespace(chance=None))
    return StepTable(cast(RunContext, context), every_report=verbose), clock


def report(step: int, **metrics: float) -> StepReport:
    return StepReport(step=step, metrics={tag.replace("__", "/"): value for tag, value in metrics.items()})


def test_rows_are_in_columns_with_the_time_left_at_the_speed_since_the_last_row() -> None:
    rows, clock = table(total_steps=3000)
    clock.seconds = 5.0
    assert rows.rows(report(10, train__loss_nats=3.25, time__tokens_per_second=12345.6)) == [
        "    step  train loss    val loss    tokens/s     time left",
        "      10      3.2500           -      12,346   24 min 55 s",
    ]
    clock.seconds = 104.0
    assert rows.rows(report(1000, val__loss_nats=float("nan"))) == [
        "   1,000           -         nan           -    3 min 20 s"
    ]


def test_a_run_has_about_twenty_rows_and_one_for_each_evaluation() -> None:
    rows, _ = table(total_steps=1000)
    steps = [step for step in range(10, 1001, 10) if rows.rows(report(step, train__loss_nats=1.0))]
    assert steps == list(range(10, 1001, 50))
    assert rows.rows(report(961, val__loss_nats=1.0)) and not rows.rows(report(970, train__loss_nats=1.0))
    assert not rows.rows(report(1000, **{"val_length/loss_nats/64_tokens": 1.0})), "no row without a loss"


def test_a_slow_run_has_a_row_a_minute_and_a_verbose_one_a_row_for_each_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("samout_train.training.callbacks.step_table.time.monotonic", lambda: now[0])
    rows, _ = table(total_steps=100_000)
    assert rows.rows(report(10, train__loss_nats=1.0)) and not rows.rows(report(20, train__loss_nats=1.0))
    now[0] = SECONDS_BETWEEN_ROWS
    assert rows.rows(report(30, train__loss_nats=1.0))
    verbose, _ = table(total_steps=100_000, verbose=True)
    assert all(verbose.rows(report(step, train__loss_nats=1.0)) for step in range(1, 9))


def test_a_limit_on_time_counts_down_by_the_clock() -> None:
    rows, clock = table(total_steps=None, max_seconds=100.0)
    clock.seconds = 60.0
    assert rows.rows(report(7, train__loss_nats=1.0))[1].endswith("   40.0 s")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.4, "59.4 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (7505, "2 h 5 min")],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text

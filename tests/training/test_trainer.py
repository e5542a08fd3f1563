"""Whole runs on a CPU: what is written, when, what continues to the same bits, and what ends a run."""

import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from samout_train import build_trainer, train
from samout_train.config import ConfigError
from samout_train.runtime import StopRequestedError
from samout_train.training import Callback, StepReport
from samout_train.training.reports import Reports
from tests.support.marks import mostly_nightly
from tests.support.signal_after import signal_after

TINY = [
    *("model=v8", "data=random", "device=cpu", "model.hidden_size=12", "model.num_heads=2", "model.num_layers=2"),
    *("data.seq_len=9", "data.num_sequences=20", "data.batch_size=8", "model.dropout=0.1", "data.vocab_size=32"),
]


def run(run_dir: Path, *overrides: str) -> dict[str, Any]:
    summary, _ = train([*TINY, f"run_dir={run_dir}", *overrides])
    return summary


def test_random_states_of_a_checkpoint_are_those_after_its_step() -> None:
    trainer = build_trainer([*TINY, "trainer.on_non_finite=skip", "kernels=reference"])
    step = trainer.training_step
    step.checks_on_host = False  # as on CUDA: the host learns later that a step was not finite
    for _ in range(3):
        trainer.step()
    after = torch.get_rng_state()
    step.model.register_forward_hook(lambda net, args, output: (output[0] * float("nan"), output[1]))
    trainer.step()
    state = trainer.state_dict()
    assert state["step"] == 3 and torch.equal(state["random"]["torch"], after)


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def steps_with(run_dir: Path, tag: str) -> list[int]:
    return [line["step"] for line in lines(run_dir) if tag in line]


@pytest.mark.slow
def test_a_run_directory_holds_what_it_should_and_nothing_else(tmp_path: Path) -> None:
    summary = run(tmp_path / "run")
    names = {path.name.split(".tfevents")[0] for path in (tmp_path / "run").iterdir()}
    assert names == {".hydra", "metrics.jsonl", "events.out", "summary.json", "checkpoints", "samout_train.log"}
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert summary["steps"] == 10 and summary["model"] == "v8" and summary["data"] == "random"
    assert summary["floor_nats"] == pytest.approx(3.4339872) and "bits_per_byte" not in summary  # ln 31
    assert summary["tokens_seen"] <= 10 * 8 * 9 and summary["best_val_step"] == 10


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    first, again, other = run(tmp_path / "a"), run(tmp_path / "b"), run(tmp_path / "c", "seed=1")
    assert first["weights_sha256"] == again["weights_sha256"] != other["weights_sha256"]
    assert first["val_loss_nats"] == again["val_loss_nats"]


@pytest.mark.slow
def test_intervals_and_the_last_step_are_logged_and_evaluated(tmp_path: Path) -> None:
    run(tmp_path / "run", "trainer.max_steps=11", "trainer.log_every_n_steps=4", "trainer.eval_every_n_steps=3")
    assert steps_with(tmp_path / "run", "train/loss_nats") == [4, 8, 11]
    assert steps_with(tmp_path / "run", "val/loss_nats") == [3, 6, 9, 11]
    tags = {"train/loss_nats", "train/lr", "train/grad_norm", "memory/peak_bytes"}
    assert tags | {"time/tokens_per_second", "time/matmul_share", "step"} == lines(tmp_path / "run")[1].keys()


def test_the_share_of_matrix_products_is_that_of_the_measured_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samout_train.training.reports.matmul_rate", lambda device, precision: 5e9)
    summary = run(tmp_path / "run", "trainer.max_steps=2")
    logged = [line for line in lines(tmp_path / "run") if "time/matmul_share" in line]
    assert logged
    for line in logged:
        flops = line["time/tokens_per_second"] * summary["training_flops_per_token"]
        assert line["time/matmul_share"] == pytest.approx(flops / 5e9)


@pytest.mark.parametrize(
    ("limit", "steps"),
    [(["trainer.max_steps=3"], 3), (["trainer.max_epochs=2"], 5), (["trainer.max_epochs=2", "trainer.max_steps=4"], 4)],
)
def test_the_first_limit_ends_the_run(tmp_path: Path, limit: list[str], steps: int) -> None:
    assert run(tmp_path / "run", *limit)["steps"] == steps  # two epochs of 20 rows in batches of 8: 5 steps


@pytest.mark.slow
def test_time_alone_can_limit_a_run(tmp_path: Path) -> None:
    summary = run(tmp_path / "run", "trainer.max_seconds=0.2")
    assert summary["train_seconds"] >= 0.2 and lines(tmp_path / "run")[-1]["step"] == summary["steps"]


@pytest.mark.slow
def test_the_final_loss_is_that_of_the_whole_validation_split(tmp_path: Path) -> None:
    overrides = [*TINY, "trainer.max_steps=2", "model.dropout=0"]
    summary, model = train([*overrides, f"run_dir={tmp_path / 'run'}"])
    source = build_trainer(overrides).source
    ids = source.validation.windows(0, 20)
    logits, _ = model.eval()(ids[:, :-1])
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=3)
    assert summary["val_loss_nats"] == pytest.approx(float(wanted.detach()), rel=1e-5)


@pytest.mark.slow
def test_bits_per_byte_are_those_of_the_text(tmp_path: Path, small_text: Path) -> None:
    text = ["data=text", f"data.path={small_text}", "data.seq_len=16", "data.batch_size=4", "trainer.max_steps=3"]
    sizes = ["model.hidden_size=12", "model.num_heads=2", "model.num_layers=1", "device=cpu"]
    summary, _ = train([*text, *sizes, f"run_dir={tmp_path / 'run'}"])
    validation = small_text.read_text("utf-8")[3600:]
    nats = summary["val_loss_nats"] * 399  # every character of the split but the first is a target
    assert summary["bits_per_byte"] == pytest.approx(nats / 0.6931471806 / len(validation[1:].encode()))


@pytest.mark.slow
def test_overfitting_one_batch_drives_its_loss_down(tmp_path: Path) -> None:
    summary = run(
        tmp_path / "run", "trainer.overfit_batches=1", "trainer.max_steps=200", "optimizer.lr=0.01", "model.dropout=0"
    )
    assert summary["train_loss_nats"] < 1.0 < summary["floor_nats"]


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", mostly_nightly([1, 4, 7], {4}))
@pytest.mark.parametrize(
    "extra",
    [
        pytest.param([], marks=pytest.mark.nightly),
        ["trainer.accumulate=4", "optimizer=adamw", "schedule=cosine"],
    ],
    ids=["plain", "all"],
)
def test_a_continued_run_ends_in_the_bits_of_an_undisturbed_one(
    tmp_path: Path, stop_after: int, extra: list[str]
) -> None:
    settings = [*extra, "trainer.max_steps=9", "trainer.eval_every_n_steps=2"]
    whole = run(tmp_path / "whole", *settings)
    with pytest.raises(StopRequestedError) as stop:
        run(tmp_path / "stopped", *settings, signal_after(stop_after))
    assert stop.value.exit_code == 143 and not (tmp_path / "stopped" / "summary.json").exists()
    continued = run(tmp_path / "stopped", *settings, "resume=auto")
    for key in ("weights_sha256", "val_loss_nats", "best_val_loss_nats", "best_val_step", "tokens_seen", "steps"):
        assert continued[key] == whole[key], key
    timeless = ("step", "train/loss_nats", "train/lr", "train/grad_norm", "val/loss_nats")
    first, second = ([{t: x.get(t) for t in timeless} for x in lines(tmp_path / n)] for n in ("whole", "stopped"))
    assert first == second


@pytest.mark.slow
def test_a_signal_during_evaluation_stops_it_and_it_is_made_up_for(tmp_path: Path) -> None:
    settings = ["trainer.max_steps=6", "trainer.eval_every_n_steps=3"]
    run(tmp_path / "whole", *settings)
    target = f"{__name__}.SignalInEvaluation"
    with pytest.raises(StopRequestedError):
        run(tmp_path / "stopped", *settings, f"+callbacks.stop={{_target_: {target}}}")
    assert steps_with(tmp_path / "stopped", "val/loss_nats") == []
    run(tmp_path / "stopped", *settings, "resume=auto")
    assert steps_with(tmp_path / "stopped", "val/loss_nats") == steps_with(tmp_path / "whole", "val/loss_nats")


@pytest.mark.slow
def test_a_run_that_is_stopped_before_and_after_its_last_report_logs_it_once(tmp_path: Path) -> None:
    settings = ["trainer.max_steps=6", "trainer.log_every_n_steps=1"]
    with pytest.raises(StopRequestedError):
        run(tmp_path / "run", *settings, signal_after(6))  # after the last step, before its report
    for _ in range(2):
        with pytest.raises(StopRequestedError):
            target = f"+callbacks.stop={{_target_: {__name__}.SignalAtReport}}"
            run(tmp_path / "run", *settings, target, "resume=auto")  # before the final evaluation
    run(tmp_path / "run", *settings, "resume=auto")
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


class SignalAtReport(Callback):
    """Sends SIGTERM after a report."""

    def on_report(self, report: StepReport) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class SignalInEvaluation(Callback):
    """Sends SIGTERM as soon as the model is put into evaluation mode."""

    def on_start(self, context: Any) -> None:
        inner = context.model.train

        def train_mode(mode: bool = True) -> Any:
            if not mode and context.model.training:
                os.kill(os.getpid(), signal.SIGTERM)
            return inner(mode)

        context.model.train = train_mode


@pytest.mark.slow
def test_rolled_back_steps_leave_the_log(tmp_path: Path) -> None:
    run(tmp_path / "run", "trainer.max_steps=9", "checkpoint.every_n_steps=4", "checkpoint.keep_last=5")
    for path in (tmp_path / "run" / "checkpoints").glob("step_00000009.*"):
        path.unlink()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "train/lo')  # cut short by a death
    run(tmp_path / "run", "trainer.max_steps=9", "resume=auto")
    assert steps_with(tmp_path / "run", "train/loss_nats") == list(range(1, 10))


@pytest.mark.slow
def test_a_finished_run_can_be_continued_further(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "trainer.max_steps=12")
    run(tmp_path / "run", "trainer.max_steps=5")
    assert run(tmp_path / "run", "trainer.max_steps=12", "resume=auto")["weights_sha256"] == whole["weights_sha256"]
    again = run(tmp_path / "run", "trainer.max_steps=12", "resume=auto")
    assert again["weights_sha256"] == whole["weights_sha256"] and again["steps"] == 12


@pytest.mark.slow
def test_a_new_run_starts_from_another_ones_checkpoint_and_says_so(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "trainer.max_steps=8")
    run(tmp_path / "first", "trainer.max_steps=5")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "first").rglob("*")}
    second = run(tmp_path / "second", "trainer.max_steps=8", f"resume={tmp_path / 'first'}")
    assert second["weights_sha256"] == whole["weights_sha256"]
    assert second["resumed_from"].endswith("first/checkpoints/step_00000005.pt")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "first").rglob("*")} == before
    further = run(tmp_path / "second", "trainer.max_steps=9", "resume=auto")
    assert further["resumed_from"] == second["resumed_from"]


@pytest.mark.slow
def test_a_run_directory_is_never_overwritten(tmp_path: Path) -> None:
    run(tmp_path / "run", "trainer.max_steps=2")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(ConfigError, match="holds a run already: set resume=auto"):
        run(tmp_path / "run", "trainer.max_steps=2")
    with pytest.raises(ConfigError, match=r"model.hidden_size=24: the run in .* has 12"):
        run(tmp_path / "run", "resume=auto", "model.hidden_size=24")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.slow
def test_resume_auto_starts_where_there_is_nothing_yet(tmp_path: Path) -> None:
    assert run(tmp_path / "run", "trainer.max_steps=2", "resume=auto")["steps"] == 2


def test_a_callback_can_stop_a_run_and_the_last_step_is_reported(tmp_path: Path) -> None:
    target = f"{__name__}.StopAt"
    summary = run(tmp_path / "run", "trainer.max_steps=50", f"+callbacks.stop_at={{_target_: {target}, step: 7}}")
    assert summary["steps"] == 7
    assert steps_with(tmp_path / "run", "val/loss_nats") == [7]
    assert (tmp_path / "run" / "checkpoints" / "step_00000007.pt").exists()


class StopAt(Callback):
    """Asks to stop at a step."""

    def __init__(self, *, step: int) -> None:
        self.step = step

    def on_report(self, report: StepReport) -> str | None:
        return "enough" if report.step == self.step else None


def test_an_evaluation_that_is_not_a_number_is_not_the_best_one(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = Reports.__new__(Reports)
    reports.best_val_loss_nats = None
    reports.training_step, reports.fixed_batches = SimpleNamespace(average=None), []
    best = []
    for step, loss in enumerate((math.nan, 3.0, math.nan, 2.0, 4.0), start=1):
        evaluation = SimpleNamespace(loss_nats=loss, bits_per_byte=None)
        monkeypatch.setattr(Reports, "_evaluate", lambda *_, found=evaluation: found)
        reports._validation_metrics(step, None)
        best.append(reports.best_val_step)
    assert best == [1, 2, 2, 4, 4] and reports.best_val_loss_nats == 2.0

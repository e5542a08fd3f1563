"""What callbacks write, read back as TensorBoard and a person would."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from samout_train import train
from samout_train.config import ConfigError
from samout_train.data import SOS_ID, MatrixRows
from samout_train.training import Callback, RunContext, StepReport
from samout_train.training.callbacks.early_stopping import EarlyStopping
from samout_train.training.callbacks.samples import prompts_from
from samout_train.training.limits import Reached

TINY = [
    *("model=v8", "device=cpu", "model.hidden_size=12", "model.num_heads=2", "model.num_layers=1"),
    *("data.seq_len=9", "data.batch_size=8"),
]


def run(run_dir: Path, *overrides: str) -> EventAccumulator:
    train([*TINY, f"run_dir={run_dir}", *overrides])
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def session(events: EventAccumulator, tag: str) -> Any:
    content = events.summary_metadata[tag].plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content)


@pytest.mark.slow
def test_tensorboard_has_every_tag_at_every_report(tmp_path: Path, small_text: Path) -> None:
    events = run(
        tmp_path, "data=text", f"data.path={small_text}", "trainer.max_steps=25", "trainer.eval_every_n_steps=20"
    )
    logged = ("train/loss_nats", "train/lr", "train/grad_norm", "time/tokens_per_second", "memory/peak_bytes")
    for tag in logged:
        assert [event.step for event in events.Scalars(tag)] == [10, 20, 25], tag
    for tag in ("val/loss_nats", "val/bits_per_byte"):
        assert [event.step for event in events.Scalars(tag)] == [20, 25], tag


@pytest.mark.slow
def test_tensorboard_has_a_sample_at_every_evaluation(tmp_path: Path, small_text: Path) -> None:
    events = run(
        tmp_path, "data=text", f"data.path={small_text}", "trainer.max_steps=25", "trainer.eval_every_n_steps=20"
    )
    samples = events.Tensors("sample/text_summary")
    assert [sample.step for sample in samples] == [20, 25]
    assert all(len(sample.tensor_proto.string_val[0].decode()) > 100 for sample in samples)


@pytest.mark.slow
def test_samples_begin_with_the_tokens_of_a_row_and_not_with_its_padding(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "short.jsonl").write_text('{"text": "abcab"}\n' * 40)
    data = ["data=jsonl", f"data.path={tmp_path / 'short.jsonl'}", "data.layout=padded", "data.seq_len=40"]
    events = run(tmp_path / "run", *data, "callbacks.sample.prompt_tokens=20", "trainer.max_steps=1")
    text = events.Tensors("sample/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.startswith("    abcab") and "<|pad|>" not in text
    texts = [str(record.args[0]) for record in caplog.records if record.msg == "%s\n" and record.args]
    assert len(texts) == 3 and all(text.startswith("abcab") and "<|pad|>" not in text for text in texts)


def test_a_row_of_padding_only_is_continued_from_the_start_of_a_text() -> None:
    assert prompts_from(MatrixRows(torch.tensor([[3, 3, 3], [3, 5, 6]])), 2, 1) == [[SOS_ID], [5]]


@pytest.mark.parametrize("name", ["sample", "tensorboard"])
def test_how_samples_are_drawn_is_set_in_yaml(name: str, tmp_path: Path, small_text: Path) -> None:
    words = ["data=text", f"data.path={small_text}", f"run_dir={tmp_path}"]
    with pytest.raises(ConfigError, match=rf"callbacks\.{name}\.temperature=-1: must be at least 0"):
        train([*words, f"callbacks.{name}.temperature=-1"])
    with pytest.raises(ConfigError, match=rf"callbacks\.{name}\.top_k=0: must be above 0"):
        train([*words, f"callbacks.{name}.top_k=0"])


def test_tensorboard_has_configuration_commit_data_and_hparams_in_the_run_itself(tmp_path: Path) -> None:
    events = run(tmp_path, "data=random", "trainer.max_steps=2")
    text = {
        tag: events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode() for tag in ("config", "data")
    }
    assert "hidden_size: 12" in text["config"] and "sequences: 100" in text["data"]
    assert "commit/text_summary" in events.Tags()["tensors"]
    start = session(events, metadata.SESSION_START_INFO_TAG).session_start_info.hparams
    assert start["model.hidden_size"].number_value == 12 and start["model.tied_head"].string_value == "False"
    assert start["model"].string_value == "v8" and "run_dir" not in start and "model._target_" not in start
    assert session(events, metadata.SESSION_END_INFO_TAG).session_end_info.status
    assert metadata.EXPERIMENT_TAG not in events.summary_metadata
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 1
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert b"train/loss_nats" in layout and b"val/loss_nats" in layout


def test_tensorboard_has_the_results_and_the_weights_at_the_end(tmp_path: Path) -> None:
    words = [*TINY, "data=random", "trainer.max_steps=2", "callbacks.tensorboard.histogram_values=50"]
    summary, model = train([*words, f"run_dir={tmp_path}"])
    events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0})
    events.Reload()
    for name in ("best_val_loss_nats", "val_loss_nats", "tokens_per_second", "parameters"):
        (event,) = events.Scalars(f"hparam/{name}")
        assert event.step == 2 and event.value == pytest.approx(summary[name]), name
    for name, parameter in model.named_parameters():
        (drawn,) = events.Histograms(f"weights/{name}")
        assert min(parameter.numel(), 50) <= drawn.histogram_value.num < 101, name
        assert drawn.histogram_value.max <= parameter.max() and drawn.histogram_value.min >= parameter.min(), name


@pytest.mark.slow
def test_points_of_rolled_back_steps_are_gone_after_continuing(tmp_path: Path) -> None:
    settings = ["data=random", "checkpoint.every_n_steps=4", "checkpoint.keep_last=9"]
    run(tmp_path, *settings, "trainer.max_steps=9")
    for path in (tmp_path / "checkpoints").glob("step_00000009.*"):
        path.unlink()
    events = run(tmp_path, *settings, "trainer.max_steps=11", "resume=auto")
    assert [event.step for event in events.Scalars("train/loss_nats")] == list(range(1, 12))


@pytest.mark.slow
def test_points_are_not_doubled_where_a_run_starts_anew_without_a_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, "data=random", "trainer.max_steps=3")
    for path in (tmp_path / "checkpoints").glob("*"):
        path.unlink()
    events = run(tmp_path, "data=random", "trainer.max_steps=2", "resume=auto")
    assert [event.step for event in events.Scalars("train/loss_nats")] == [1, 2]


@pytest.mark.slow
def test_a_run_on_text_ends_with_samples(tmp_path: Path, small_text: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run(tmp_path, "data=text", f"data.path={small_text}", "trainer.max_steps=2")
    texts = [record.args[0] for record in caplog.records if record.msg == "%s\n" and record.args]
    assert [len(str(text)) for text in texts] == [4 + 400] * 3  # the prompt is half a row
    content = small_text.read_text("utf-8")
    assert all(str(text)[:4] in content for text in texts)
    prompt = run_with_prompt(tmp_path / "b", small_text, caplog)
    assert prompt.startswith("line") and len(prompt) == 4 + 6


def run_with_prompt(run_dir: Path, small_text: Path, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    settings = ["callbacks.sample.prompt=line", "callbacks.sample.max_new_tokens=6", "callbacks.sample.num_samples=1"]
    run(run_dir, "data=text", f"data.path={small_text}", "trainer.max_steps=1", *settings)
    return str(next(record.args[0] for record in caplog.records if record.msg == "%s\n" and record.args))


@pytest.mark.parametrize(
    ("share", "precision", "hints"),
    [(0.5, "auto", 1), (1.5, "auto", 0), (0.79, "auto", 1), (0.81, "auto", 0), (None, "auto", 0), (0.5, "fp32", 0)],
)
def test_bf16_is_pointed_out_once_where_it_was_measured_to_be_faster_to_who_left_the_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float | None, precision: str, hints: int
) -> None:
    asked = []
    monkeypatch.setattr(
        "samout_train.training.callbacks.console.bfloat16_share", lambda shape: asked.append(shape) or share
    )
    train([*TINY, f"precision={precision}", "trainer=debug", f"run_dir={tmp_path / 'run'}"])
    log = (tmp_path / "run" / "samout_train.log").read_text()
    assert log.count("precision   fp32; products in bf16 take") == hints
    assert log.count(f"take {share or 0:.2f} of the time here: try precision=bf16") == hints
    assert len(asked) == (precision == "auto")


class ReadsTheContext(Callback):
    """Keeps the context, and what it says before the first step and after the last one."""

    def on_start(self, context: RunContext) -> None:
        self.context = SEEN["context"] = context
        SEEN["at start"] = (context.first_step, context.reported_step)

    def limit_reached(self) -> Reached:
        return Reached("patience", 3, "patience=6")

    def on_end(self, summary: dict[str, Any]) -> None:
        SEEN["at end"] = (self.context.first_step, self.context.reported_step, self.context.steps_left_out())
        SEEN["limits"] = [limit.further for limit in self.context.limits_reached()]


SEEN: dict[str, Any] = {}


def test_a_callback_reads_the_run_by_name(tmp_path: Path) -> None:
    words = ["data.batch_size=8", "trainer.accumulate=2", "trainer.chunk_len=3", "trainer.max_seconds=1000", "seed=7"]
    target = f"+callbacks.reads={{_target_: {__name__}.ReadsTheContext}}"
    for steps, resume in ((2, "null"), (3, "auto")):
        _, model = train(
            [*TINY, *words, f"trainer.max_steps={steps}", f"resume={resume}", f"run_dir={tmp_path}", target]
        )
    context = SEEN["context"]
    trainer = context.trainer
    assert context.model is model is trainer.model and context.source is trainer.source
    assert len(context.fixed_batches) == len(trainer.reports.fixed_batches) > 0
    assert (context.run_dir.resolve(), context.model_name, context.data_name) == (tmp_path.resolve(), "v8", "random")
    assert (context.device, context.precision, context.seed) == (torch.device("cpu"), "fp32", 7)
    assert (context.batch_size, context.accumulate, context.chunk_len, context.processes) == (8, 2, 3, 1)
    assert (context.total_steps, context.max_seconds, context.parts) == (3, 1000, [])
    assert context.settings["trainer.accumulate"] == 2 and "accumulate: 2" in context.config_text
    assert "trainer.max_steps=3" in context.command
    assert SEEN["at start"] == (2, 2) and SEEN["at end"] == (2, 2, 0)
    assert SEEN["limits"] == ["trainer.max_steps=6", "callbacks.reads.patience=6"]


def test_early_stopping_waits_for_its_patience_and_counts_evaluations_only() -> None:
    stopping = EarlyStopping(patience=2, min_improvement_nats=0.1)
    answers = []
    for step, loss in enumerate([3.0, 2.0, None, 1.95, None, 2.5, 1.0], start=1):
        metrics = {"train/loss_nats": 9.0} if loss is None else {"val/loss_nats": loss}
        if step == 5:
            state, stopping = stopping.state_dict(), EarlyStopping(patience=2, min_improvement_nats=0.1)
            stopping.load_state_dict(state)
        answers.append(stopping.on_report(StepReport(step=step, metrics=metrics)))
    assert [bool(answer) for answer in answers] == [False, False, False, False, False, True, False]
    assert answers[5] is not None and "below 2.0000 for 2 evaluations" in answers[5]


@pytest.mark.slow
def test_early_stopping_ends_a_run_that_only_memorises(tmp_path: Path) -> None:
    settings = ["data=random", "callbacks=early_stopping", "callbacks.early_stopping.patience=2", "optimizer.lr=0.03"]
    every = "trainer.eval_every_n_steps=5"
    summary, _ = train([*TINY, *settings, f"run_dir={tmp_path}", "trainer.max_steps=500", every])
    assert summary["steps"] < 500

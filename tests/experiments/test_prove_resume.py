"""prove_resume: the same bits where they are the same, exit code 1 where they are not, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from samout_train import train
from samout_train.cli import prove_resume
from samout_train.experiments import prove_resume as proof
from tests.support.program import samout

TINY = [
    *("model=v8", "data=random", "device=cpu", "model.hidden_size=12", "model.num_heads=2", "model.num_layers=1"),
    *("data.seq_len=9", "data.num_sequences=8", "data.batch_size=4", "callbacks=metrics_file"),
]


@pytest.mark.slow
def test_a_run_that_is_killed_is_the_same_run(tmp_path: Path) -> None:
    done = samout(tmp_path, "prove_resume", *TINY, "steps=3", "kills=1", "run_dir=kept", timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "the same, bit for bit" and "kill 1: after step" in done.stderr
    digests = [line.split() for line in lines[:-1]]
    assert [words[:2] for words in digests] == [
        [name, what] for name in ("undisturbed", "killed") for what in ("weights", "optimizer", "metrics")
    ]
    assert [words[2] for words in digests[:3]] == [words[2] for words in digests[3:]]
    assert {path.name for path in (tmp_path / "kept").iterdir() if path.is_dir()} == {"undisturbed", "killed"}


REGULARISED = [
    *("model.embedding_dropout=0.1", "model.mixer_dropout=0.1", "model.ffn_inner_dropout=0.1", "model.ffn_dropout=0.1"),
    *("model.drop_connect=0.1", "model.stochastic_depth=0.5", "optimizer=adamw", "optimizer.weight_decay_end=1"),
    *("data=text", "data.path=text.txt", "data.seq_len=9", "data.batch_size=4", "model=v8", "device=cpu"),
    *("model.hidden_size=12", "model.num_heads=2", "model.num_layers=2", "callbacks=metrics_file"),
    *("checkpoint.every_n_steps=1", "trainer.log_every_n_steps=1"),
]


@pytest.mark.nightly
def test_all_regularisation_together_is_continued_exactly(tmp_path: Path) -> None:
    """Over the ends of epochs, each of which cuts its rows elsewhere."""
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question. " * 6, "utf-8")
    done = samout(tmp_path, "prove_resume", *REGULARISED, "steps=14", "kills=2", timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "the same, bit for bit" and "kill 1: after step" in done.stderr


@pytest.mark.nightly
def test_muon_an_average_and_a_temperature_are_continued_exactly(tmp_path: Path) -> None:
    words = [
        "model=maxplus",
        "model.mixer.counters=0.5",
        "optimizer=muon",
        "trainer.ema=40",
        "trainer.log_every_n_steps=1",
    ]
    done = samout(tmp_path, "prove_resume", *TINY, *words, "steps=8", "kills=2", "run_dir=kept", timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "the same, bit for bit" and "kill 1: after step" in done.stderr
    lines = (tmp_path / "kept" / "killed" / "metrics.jsonl").read_text("utf-8").splitlines()
    temperatures = [line["train/temperature"] for line in map(json.loads, lines) if "train/temperature" in line]
    assert temperatures[0] == 1 and 0 < temperatures[5] < 1 and temperatures[-1] == 0


@pytest.mark.slow
def test_other_bits_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def other(words: list[str], run_dir: Path, *, kills: int, **settings: Any) -> None:
        train([*words, f"seed={kills}", f"run_dir={run_dir}"])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(proof, "run_killed", other)
    assert prove_resume.prove_resume([*TINY, "steps=2", "kills=0"]) == 0
    assert prove_resume.prove_resume([*TINY, "steps=2", "kills=1"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "NOT the same"
    assert not list(tmp_path.iterdir()), "without run_dir nothing is kept"


@pytest.mark.slow
def test_all_logged_figures_but_times_and_memory_are_compared(tmp_path: Path) -> None:
    train([*TINY, "trainer.max_steps=2", f"run_dir={tmp_path}"])
    path = tmp_path / "metrics.jsonl"
    text, wanted = path.read_text("utf-8"), proof.digests(tmp_path)["metrics"]
    for tag, is_same in (("time/x", True), ("memory/x", True), ("val_state/x", False), ("train/temperature", False)):
        path.write_text(text.replace('{"step": 2', f'{{"{tag}": 0.5, "step": 2'), "utf-8")
        assert path.read_text("utf-8") != text
        assert (proof.digests(tmp_path)["metrics"] == wanted) == is_same, tag


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("steps=0", "steps=0: must be above 0"),
        ("resume=auto", "resume: both runs start at step 0"),
        ("modle=v8", "modle=v8: no such key; did you mean model?"),
        ("model.hidden_size=13", "must be divisible"),
    ],
)
def test_a_wrong_request_is_told_with_exit_code_2(
    tmp_path: Path, word: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert prove_resume.prove_resume([*TINY, word]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())

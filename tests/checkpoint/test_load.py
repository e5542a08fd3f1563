"""Vocabularies of runs and of the published scripts, as a person asks for them from Python."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch

from samout_train import generate_text, load_run, load_vocabulary, train
from samout_train.config import ConfigError
from samout_train.data import SPECIAL_TOKENS
from tests.support.marks import spread

SIZES = ["model.hidden_size=12", "model.num_heads=2", "model.num_layers=1", "device=cpu", "trainer=debug"]


@pytest.mark.slow
@pytest.mark.parametrize("name", spread(["characters", "bytes", "bpe"], 3))
def test_a_run_keeps_its_vocabulary(tmp_path: Path, small_text: Path, name: str) -> None:
    run_dir = tmp_path / "run"
    data = ["data=text", f"data.path={small_text}", f"data.vocabulary={name}", "data.vocab_size=300", "data.seq_len=9"]
    _, model = train([*SIZES, *data, "data.batch_size=4", f"run_dir={run_dir}"])
    vocabulary = load_vocabulary(run_dir)
    loaded_model, loaded_vocabulary = load_run(run_dir)
    assert loaded_vocabulary.state_dict() == vocabulary.state_dict()
    weights, loaded = model.state_dict(), loaded_model.state_dict()
    assert weights.keys() == loaded.keys() and all(torch.equal(weights[key], loaded[key]) for key in weights)
    text = small_text.read_text("utf-8")
    assert vocabulary.name == name and vocabulary.decode(vocabulary.encode(text).tolist()) == text
    (checkpoint,) = (run_dir / "checkpoints").glob("step_00000002.pt")
    assert load_vocabulary(checkpoint).state_dict() == vocabulary.state_dict()
    assert "".join(generate_text(model, vocabulary, "line ", max_new_tokens=5))


def test_a_published_vocabulary_is_found_by_what_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "total_voc.pkl"
    path.write_bytes(pickle.dumps({"voc": [*SPECIAL_TOKENS, "a"], "voc0": {}}))
    assert load_vocabulary(path).encode("a").tolist() == [5]


@pytest.mark.slow
def test_where_there_is_none_the_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not there: give a run directory or a checkpoint"):
        load_vocabulary(tmp_path / "absent")
    data = ["data.num_sequences=8", "data.batch_size=8", "data.seq_len=9"]
    train([*SIZES, *data, f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(ValueError, match="ids that are not text"):
        load_vocabulary(tmp_path / "run")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("loading") / "run"
    train([*SIZES, "data.num_sequences=8", "data.batch_size=8", "data.seq_len=9", f"run_dir={run_dir}"])
    return run_dir


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("samout_train.models.samout.SamOut", "gone.Model", "model._target_=gone.Model: cannot be imported"),
        ("hidden_size: 12", "hidden_size: 24", "its model is not that of step_00000002.pt (Error(s) in loading"),
        (
            "num_layers: 1",
            "num_layers: 2",
            "not that of step_00000002.pt (Error(s) in loading state_dict for SamOut: Mi",
        ),
        ("hidden_size: 12", "hidden_size: -1", "model.hidden_size=-1: must be from 1 to 16777216"),
        ("hidden_size: 12", "hidden_size: ${width}", "model.hidden_size: ${width} names a key that is not there"),
        ("hidden_size: 12", "hidden_size: [", "config.yaml line "),
        ("model:", "modle:", "does not say how the model was built (has no model): restore what the run wrote"),
        ("model:", "model: v8", "does not say how the model was built"),
    ],
)
def test_a_saved_configuration_that_does_not_fit_is_told_in_a_line(
    run: Path, tmp_path: Path, was: str, now: str, message: str
) -> None:
    shutil.copytree(run, tmp_path / "run")
    saved = tmp_path / "run" / ".hydra" / "config.yaml"
    saved.write_text(saved.read_text("utf-8").replace(was, now, 1), "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_run(tmp_path / "run")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(str(saved)) and message in line and len(line) < 600
    saved.unlink()
    with pytest.raises(ConfigError, match=r"config\.yaml: does not say how the model was built .*No such file"):
        load_run(tmp_path / "run")

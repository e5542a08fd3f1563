"""Vocabularies of runs and of the published scripts, as a person asks for them from Python."""

import pickle
from pathlib import Path

import pytest

from samout_train import generate_text, load_vocabulary, train
from samout_train.data.vocabulary import SPECIAL_TOKENS

SIZES = ["model.hidden_size=12", "model.num_heads=2", "model.num_layers=1", "device=cpu", "trainer=debug"]


@pytest.mark.parametrize("name", ["characters", "bytes", "bpe"])
def test_a_run_keeps_its_vocabulary(tmp_path: Path, small_text: Path, name: str) -> None:
    run_dir = tmp_path / "run"
    data = ["data=text", f"data.path={small_text}", f"data.vocabulary={name}", "data.vocab_size=300", "data.seq_len=9"]
    _, model = train([*SIZES, *data, "data.batch_size=4", f"run_dir={run_dir}"])
    vocabulary = load_vocabulary(run_dir)
    text = small_text.read_text("utf-8")
    assert vocabulary.name == name and vocabulary.decode(vocabulary.encode(text).tolist()) == text
    (checkpoint,) = (run_dir / "checkpoints").glob("step_00000002.pt")
    assert load_vocabulary(checkpoint).state_dict() == vocabulary.state_dict()
    assert "".join(generate_text(model, vocabulary, "line ", max_new_tokens=5))


def test_a_published_vocabulary_is_found_by_what_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "total_voc.pkl"
    path.write_bytes(pickle.dumps({"voc": [*SPECIAL_TOKENS, "a"], "voc0": {}}))
    assert load_vocabulary(path).encode("a").tolist() == [5]


def test_where_there_is_none_the_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not there: give a run directory or a checkpoint"):
        load_vocabulary(tmp_path / "absent")
    data = ["data.num_sequences=8", "data.batch_size=8", "data.seq_len=9"]
    train([*SIZES, *data, f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(ValueError, match="ids that are no text"):
        load_vocabulary(tmp_path / "run")

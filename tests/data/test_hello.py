"""Labelling: hello to ohlol."""

from pathlib import Path

import pytest
import torch

from samout_train import train
from samout_train.config import ConfigError
from samout_train.data.hello import hello
from tests.support.marks import mostly_nightly
from tests.support.models import HEADED, NAMES


def test_the_row_is_the_published_one() -> None:
    source = hello(ignore_index=-100, seed=0)
    inputs, labels = source.train.split(source.train.windows(0, 1))
    assert inputs.tolist() == [[1, 0, 2, 2, 3]] and labels.tolist() == [[3, 1, 2, 3, 2]]
    assert source.labels is not None and "".join(source.labels[i] for i in labels[0].tolist()) == "ohlol"


@pytest.mark.parametrize("ignore_index", [0, 3])
def test_no_letter_is_ignored(ignore_index: int) -> None:
    with pytest.raises(
        ValueError, match=f"ignore_index={ignore_index}: is the letter [eo], which would not be learned"
    ):
        hello(ignore_index=ignore_index, seed=0)


@pytest.mark.nightly
@pytest.mark.parametrize("name", mostly_nightly(NAMES, {"transformer", "maxplus"}))
def test_every_model_that_can_tell_them_apart_learns_all_five_letters(name: str, tmp_path: Path) -> None:
    sizes = ["model.hidden_size=16", "model.num_layers=2", *(["model.num_heads=2"] if name in HEADED else [])]
    words = [f"model={name}", "data=hello", *sizes, "optimizer.lr=0.01", "device=cpu", f"run_dir={tmp_path / 'run'}"]
    _, model = train(words)
    said = model.eval()(torch.tensor([[1, 0, 2, 2, 3]]))[0]
    if name in ("v1", "v8"):
        # A maximum over "hel" is that over "hell": to it the two letters l, whose labels differ, are one.
        assert torch.equal(said[:, 2], said[:, 3])
        assert said.argmax(-1)[0, [0, 1, 4]].tolist() == [3, 1, 2]
    else:
        assert said.argmax(-1).tolist() == [[3, 1, 2, 3, 2]]


@pytest.mark.parametrize(
    "words", [["model=gru", "model.bidirectional=true"], ["model=transformer", "model.causal=false"]]
)
@pytest.mark.nightly
def test_what_sees_the_whole_sequence_labels_and_is_refused_the_next_token(words: list[str], tmp_path: Path) -> None:
    sizes = [*words, "model.hidden_size=16", "model.num_layers=2", "device=cpu"]
    sizes += ["model.num_heads=2"] if "model=transformer" in words else []
    summary, _ = train([*sizes, "data=hello", "optimizer.lr=0.01", f"run_dir={tmp_path / 'run'}"])
    assert summary["val_loss_nats"] < 0.5
    with pytest.raises(ConfigError, match=r"=(true|false): .* sees the whole sequence, .* asked to predict"):
        train([*sizes, "data=random", f"run_dir={tmp_path / 'other'}"])
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hello_cell", "hello_rnn", "hello_embedding"])
def test_published_programs_end_with_ohlol(name: str, tmp_path: Path) -> None:
    train([f"experiment={name}", "device=cpu", f"run_dir={tmp_path / 'run'}"])
    said = [line for line in (tmp_path / "run" / "samout_train.log").read_text().splitlines() if " says " in line]
    assert len(said) >= 3 and said[-1].endswith("says ohlol")

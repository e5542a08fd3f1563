"""A model that sees the tokens that it has to predict is refused, or named first."""

import json
from pathlib import Path

import pytest

from tests.support.program import samout

PEEKING = """import torch
from samout_train.models.samout import MaxStateSuper

class Peeking(MaxStateSuper):
    def forward(self, x_BTD, state_BD):
        u_BTD, state_BD = super().forward(x_BTD, state_BD)
        return torch.cat([u_BTD[:, 1:], u_BTD[:, -1:]], dim=1), state_BD
"""
AT_A_BORDER = """import torch
from samout_train.models.samout import MaxStateSuper

class AtABorder(MaxStateSuper):
    def forward(self, x_BTD, state_BD):
        u_BTD, state_BD = super().forward(x_BTD, state_BD)
        if x_BTD.shape[1] > 100:
            u_BTD = torch.cat([u_BTD[:, :99], u_BTD[:, 100:101], u_BTD[:, 100:]], dim=1)
        return u_BTD, state_BD
"""
YAML = "defaults: [v8]\nmixer: {_target_: peeking.Peeking}\n"
TINY = ["data=random", "data.seq_len=16", "data.batch_size=4", "model.hidden_size=16", "model.num_heads=2"]
CHEAP = ["model.num_layers=1", "trainer.max_steps=3", "device=cpu", "~callbacks.tensorboard", "threads=1"]
WORDS = ["--config-dir=mine", *TINY, *CHEAP]
REFUSED = "model={}: is not causal: other tokens from position"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "cheat.yaml").write_text(YAML)
    (tmp_path / "peeking.py").write_text(PEEKING)
    return tmp_path


@pytest.mark.slow
def test_a_mixer_that_sees_the_next_token_is_not_trained_unless_that_is_meant(folder: Path) -> None:
    refused = samout(folder, "train", "model=cheat", "run_dir=run", *WORDS)
    assert refused.returncode == 2 and refused.stderr.startswith(REFUSED.format("cheat")), refused.stderr
    assert "on_leak=warn" in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert not (folder / "run" / "summary.json").exists()
    trained = samout(folder, "train", "model=cheat", "run_dir=run", "on_leak=warn", *WORDS)
    assert trained.returncode == 0, trained.stderr
    leak = json.loads((folder / "run" / "summary.json").read_text())["leak"]
    assert leak["position"] == leak["place"] - 1 and leak["change"] > 0


@pytest.mark.slow
def test_what_the_check_before_a_training_cannot_afford_is_found_after_it(folder: Path) -> None:
    (folder / "peeking.py").write_text(AT_A_BORDER)
    (folder / "mine" / "model" / "cheat.yaml").write_text(YAML.replace("Peeking", "AtABorder"))
    words = [*(word for word in WORDS if "seq_len" not in word), "data.seq_len=150"]
    trained = samout(folder, "train", "model=cheat", "run_dir=run", *words)
    assert trained.returncode == 0, trained.stderr
    leak = json.loads((folder / "run" / "summary.json").read_text())["leak"]
    assert (leak["place"], leak["position"]) == (100, 99)
    assert "cheat is not causal: other tokens from position 100 on" in trained.stdout + trained.stderr
    honest = samout(folder, "train", "model=v8", "run_dir=honest", *words)
    assert honest.returncode == 0, honest.stderr
    assert json.loads((folder / "honest" / "summary.json").read_text())["leak"] is None


@pytest.mark.slow
def test_a_model_that_cannot_read_the_rows_of_the_check_is_trained_with_a_warning(folder: Path) -> None:
    body = PEEKING[: PEEKING.index("        u_BTD")].replace("Peeking", "FourRows") + (
        "        if len(x_BTD) > 4:\n            raise ValueError('reads four rows')\n"
        "        return super().forward(x_BTD, state_BD)\n"
    )
    (folder / "peeking.py").write_text(body)
    (folder / "mine" / "model" / "cheat.yaml").write_text(YAML.replace("Peeking", "FourRows"))
    trained = samout(folder, "train", "model=cheat", "run_dir=run", "~callbacks.state_health", *WORDS)
    assert trained.returncode == 0, trained.stderr
    assert (
        "whether cheat is causal could not be checked (ValueError: reads four rows)" in trained.stdout + trained.stderr
    )


@pytest.mark.nightly
def test_a_comparison_with_such_a_mixer_is_refused_or_names_it_first_and_lets_it_win_nothing(folder: Path) -> None:
    words = ["compare", "models={honest: {model: v8}, peek: {model: cheat}}", "lr=1e-2", "seeds=1", "run_dir=all"]
    refused = samout(folder, *words, *WORDS)
    assert refused.returncode == 2 and refused.stderr.startswith(REFUSED.format("peek")), refused.stderr
    assert not (folder / "all" / "comparison.json").exists()
    made = samout(folder, *words, "on_leak=warn", *WORDS)
    assert made.returncode == 0, made.stderr
    text = (folder / "all" / "comparison.md").read_text()
    assert text.index("peek SEES THE TOKENS THAT IT HAS TO PREDICT") < text.index("honest has the lowest")
    assert "| peek |" in text and "| not causal |" in text

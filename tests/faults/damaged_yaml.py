"""A configuration that is right, with one mistake put into it."""

import random

from samout_train.cli import train
from samout_train.config import CONF
from tests.faults.answers import told
from tests.faults.row import Case

EXPERIMENT = """# @package _global_
defaults:
  - override /model: own
seed: 1
model:
  dropout: 0.1
optimizer:
  lr: 0.001
  betas: [0.9, 0.99]
trainer:
  max_steps: 3
  clip_grad_norm: 1.0
data:
  batch_size: 4
  num_sequences: 8
checkpoint:
  keep_best: true
"""
# What is in a file, and what is put in its place; the lines of both begin where the message has to point.
MUTATIONS: dict[str, tuple[str, str, str]] = {
    "a key twice": ("model", "num_layers: 6", "num_layers: 6\nnum_layers: 7"),
    "a key twice in a part": ("experiment", "  batch_size: 4", "  batch_size: 4\n  batch_size: 5"),
    "a part twice": ("experiment", "checkpoint:", "model:\n  dropout: 0.2\ncheckpoint:"),
    "a tab": ("model", "num_layers: 6", "\tnum_layers: 6"),
    "a tab in a part": ("experiment", "  lr: 0.001", "\tlr: 0.001"),
    "an indent too many": ("model", "num_layers: 6", "   num_layers: 6"),
    "an indent too few": ("experiment", "  max_steps: 3", " max_steps: 3"),
    "an indent lost": ("experiment", "  lr: 0.001", "lr: 0.001"),
    "a bracket that is open": ("experiment", "  betas: [0.9, 0.99]", "  betas: [0.9, 0.99"),
    "a bracket too many": ("experiment", "  betas: [0.9, 0.99]", "  betas: [0.9, 0.99]]"),
    "a quote that is open": ("model", "init: small", "init: 'small"),
    "a colon lost": ("model", "num_layers: 6", "num_layers 6"),
    "an anchor that is not there": ("model", "num_layers: 6", "num_layers: *six"),
    "a percent sign": ("model", "num_layers: 6", "num_layers: %6"),
    "a typo": ("model", "num_layers: 6", "num_layres: 6"),
    "a typo in a part": ("experiment", "  max_steps: 3", "  max_step: 3"),
    "a typo at the top": ("experiment", "seed: 1", "sed: 1"),
    "a typo in a target": (
        "model",
        "_target_: samout_train.models.samout.SamOut",
        "_target_: samout_train.models.SamOt",
    ),
    "a typo in an option": ("experiment", "  - override /model: own", "  - override /model: owm"),
    "text for a number": ("model", "num_layers: 6", "num_layers: six"),
    "a fraction for a whole number": ("experiment", "  max_steps: 3", "  max_steps: 3.5"),
    "a number for truth": ("experiment", "  keep_best: true", "  keep_best: 2"),
    "a list too short": ("experiment", "  betas: [0.9, 0.99]", "  betas: [0.9]"),
    "a list for a number": ("experiment", "  lr: 0.001", "  lr: [0.001]"),
    "null for a number": ("model", "num_layers: 6", "num_layers: null"),
    "a number for a part": ("model", "mixer:", "mixer: 3\nunused:"),
    "out of range": ("experiment", "  dropout: 0.1", "  dropout: 1.5"),
    "below zero": ("experiment", "  lr: 0.001", "  lr: -0.001"),
    "zero": ("experiment", "  batch_size: 4", "  batch_size: 0"),
    "not a number": ("experiment", "  clip_grad_norm: 1.0", "  clip_grad_norm: .nan"),
    "no choice": ("model", "init: small", "init: large"),
    "an interpolation to nothing": ("model", "num_layers: 6", "num_layers: ${model.depth}"),
    "a key that nobody reads": ("experiment", "  keep_best: true", "  keep_best: true\n  keep_worst: true"),
}
TYPED = ("+unknown=1", "+model.unknown=1", "++trainer.max_step=2", "model.num_layers=x", "optimizer.lr=2,3", "seed=")


def damaged_configurations(case: Case) -> str:
    """Mutates a configuration that is right, and reads what is said."""
    mine, files = case.folder / "mine", {"model": "model/own.yaml", "experiment": "experiment/own.yaml"}
    right = {"model": (CONF / "model" / "v8.yaml").read_text("utf-8"), "experiment": EXPERIMENT}
    cases: list[str] = [*MUTATIONS, *TYPED]
    random.Random(case.seed).shuffle(cases)
    tried, words = cases[: case.count], ["--config-dir", "mine", "experiment=own", "device=cpu"]
    for name in tried:
        for part, text in right.items():
            (mine / files[part]).parent.mkdir(parents=True, exist_ok=True)
            (mine / files[part]).write_text(text, "utf-8")
        part, old, new = MUTATIONS.get(name, ("", "", ""))
        if part:
            assert old in right[part], name
            (mine / files[part]).write_text(right[part].replace(old, new, 1), "utf-8")
        before = sorted(case.folder.rglob("*"))
        code, said = told(train.train, words if part else [*words, name], case.folder)
        assert code == 2 and 1 <= len(said.splitlines()) <= 8 and "Traceback" not in said, f"{name}: {said}"
        assert sorted(case.folder.rglob("*")) == before, f"{name} left something behind"
        if part:
            first = right[part][: right[part].index(old)].count("\n") + 1
            lines = range(first, first + new.count("\n") + 2)
            places = [f"{files[part]} line {line}" for line in lines]
            assert any(place in said for place in places), f"{name}: not at {places[0]}: {said}"
        else:
            assert name.lstrip("+").partition("=")[0] in said, f"{name}: {said}"
    return f"{len(tried)} of {len(tried)} told, with file and line"

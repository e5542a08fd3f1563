"""The runs of a comparison, as they lie in their directories."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from samout_train.comparison.jobs import read_record
from samout_train.config import ConfigError, saved_choice, saved_config
from samout_train.figures import finite_or_null
from samout_train.ledger import OUTPUT, Outcome, outcome
from samout_train.run_directory import holds_run, scalars

Summary = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training.

    Args:
        label: Of its model in the comparison.
        data: The name of what it was trained on.
        run_dir: Where it lies.
        config: As it was composed; empty where the run left none.
        outcome: What became of it.
    """

    label: str
    data: str
    run_dir: Path
    config: Mapping[str, Any] = field(repr=False)
    outcome: Outcome

    @property
    def rate(self) -> float | None:
        """Its learning rate; None where the run left no configuration."""
        rate = (self.config.get("optimizer") or {}).get("lr")
        return None if rate is None else float(rate)

    @property
    def seed(self) -> int | None:
        """Its seed; None where the run left no configuration."""
        seed = self.config.get("seed")
        return None if seed is None else int(seed)

    @property
    def summary(self) -> Summary | None:
        """Its final figures; None where it has none."""
        return self.outcome.summary

    @property
    def loss(self) -> float | None:
        """On the whole validation split, in nats; None where there is none that is a number."""
        value = None if self.summary is None else self.summary.get("val_loss_nats")
        return None if value is None else float(value)

    @cached_property
    def curve(self) -> list[tuple[int, float]]:
        """Step and loss of each evaluation on the fixed batches."""
        found = []
        try:
            lines = (self.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        for line in lines:
            try:
                logged = json.loads(line)
                if logged.get("val/loss_nats") is not None:
                    found.append((int(logged["step"]), float(logged["val/loss_nats"])))
            except (ValueError, KeyError, TypeError, AttributeError):  # cut short by a death
                continue
        return found


def read_run(run_dir: Path, label: str | None = None) -> Run:
    """Reads what a run left.

    Args:
        run_dir: Its directory.
        label: Of its model; None to take it from the comparison that it is a run of, or the name of its model.
    """
    found = outcome(run_dir)
    try:
        config = saved_config(run_dir / ".hydra" / "config.yaml")
    except ConfigError:
        config = {}
    summary = found.summary or {}
    label = label or read_record(run_dir.parent).get("labels", {}).get(run_dir.name)
    data = str(summary.get("data") or saved_choice(run_dir, "data") or _target(config, "data"))
    return Run(
        label=str(label or summary.get("model") or saved_choice(run_dir, "model") or _target(config, "model")),
        data=data,
        run_dir=run_dir,
        config=finite_or_null(config),
        outcome=found,
    )


def told_apart(runs: Sequence[Run]) -> list[Run]:
    """The same runs, where those of one label whose models have other settings get labels of their own.

    Learning rate and seed are no such settings.
    """
    settings = [scalars({key: run.config.get(key) for key in ("model", "optimizer", "schedule")}) for run in runs]
    for of_run in settings:
        of_run.pop("optimizer.lr", None)
    found = []
    for run, own in zip(runs, settings, strict=True):
        others = [of_run for other, of_run in zip(runs, settings, strict=True) if other.label == run.label]
        others = [of_run for of_run in others if of_run]  # of a run that left no configuration nothing is known
        differing = [key for key in own if any(of_run.get(key) != own[key] for of_run in others)]
        marks = [f"{key.removeprefix('model.')}={own[key]}" for key in differing]
        found.append(replace(run, label=" ".join([run.label, *marks])) if marks else run)
    return found


def run_dirs_below(folder: Path) -> list[Path]:
    """The run directories at or below a folder, also of runs that failed before they began."""
    if holds_run(folder) or (folder / "summary.json").exists():
        return [folder]
    marks = ("summary.json", "metrics.jsonl", "failure.json", OUTPUT)
    return sorted({path.parent for mark in marks for path in folder.rglob(mark)})


def _target(config: Mapping[str, Any], name: str) -> str:
    """The name of what a node builds, where no better one is known."""
    return str((config.get(name) or {}).get("_target_", "unknown")).rpartition(".")[2]

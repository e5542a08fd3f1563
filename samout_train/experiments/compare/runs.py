"""The runs of a comparison, as they lie in their directories."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from samout_train.checkpoint import holds_run, recorded_data, scalars
from samout_train.config import ConfigError, saved_choice, saved_config
from samout_train.experiments.compare.plan import entry_of
from samout_train.experiments.jobs import OUTPUT, Outcome, curve_of, outcome
from samout_train.runtime import finite_or_null

Summary = Mapping[str, Any]
SETTINGS = ("model", "optimizer", "schedule", "data", "trainer", "precision")  # that make a run another one


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training.

    Args:
        label: Of its model in the comparison.
        data: The name of what it was trained on.
        run_dir: Where it lies.
        rate: Its learning rate; None where it is not known.
        seed: Its seed; None where it is not known.
        counts: Whether it counts, or a rate is chosen by it; None for a run that is of no comparison.
        screening: Whether it is a short run of a screening.
        config: As it was composed; empty where the run left none.
        outcome: What became of it.
    """

    label: str
    data: str
    run_dir: Path
    rate: float | None
    seed: int | None
    counts: bool | None
    screening: bool = False
    config: Mapping[str, Any] = field(repr=False)
    outcome: Outcome

    @property
    def summary(self) -> Summary | None:
        """Return its final figures; None where it has none."""
        return self.outcome.summary

    @property
    def loss(self) -> float | None:
        """On the whole validation split, in nats; None where there is none that is a number."""
        value = (self.summary or {}).get("val_loss_nats")
        if value is None:
            return None
        return float(value)

    @cached_property
    def curve(self) -> list[tuple[int, float]]:
        """Return step and loss of each evaluation on the fixed batches."""
        return curve_of(self.run_dir)


def read_run(run_dir: Path) -> Run:
    """Reads what a run left, also what the comparison says that it lies in.

    Args:
        run_dir: Its directory.
    """
    found = outcome(run_dir)
    try:
        config = finite_or_null(saved_config(run_dir / ".hydra" / "config.yaml"))
        if "sha256" in (content := recorded_data(run_dir)):  # the same path may have had another text
            config["data"] = {**config["data"], "sha256": str(content["sha256"])[:12]}
    except ConfigError:
        config = {}
    if (entry := entry_of(run_dir)) is not None:
        return Run(run_dir=run_dir, config=config, outcome=found, **vars(entry))
    summary = found.summary or {}
    label, data = (
        str(summary.get(part) or saved_choice(run_dir, part) or _target(config, part)) for part in ("model", "data")
    )
    rate, seed = (config.get("optimizer") or {}).get("lr"), config.get("seed")
    if rate is not None:
        rate = float(rate)
    if seed is not None:
        seed = int(seed)
    return Run(
        label=label,
        data=data,
        run_dir=run_dir,
        rate=rate,
        seed=seed,
        counts=None,
        config=config,
        outcome=found,
    )


def told_apart(runs: Sequence[Run]) -> list[Run]:
    """Return the same runs, where those of one label and data with other settings get labels of their own.

    Learning rate and seed are no such settings, nor is what happens beside the training.
    """
    settings = [scalars({key: run.config.get(key) for key in SETTINGS}) for run in runs]
    for of_run in settings:
        of_run.pop("optimizer.lr", None)
    groups: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}  # a screening's runs have fewer steps
    for run, own in zip(runs, settings, strict=True):
        if own:  # of a run that left no configuration nothing is known
            groups.setdefault((run.label, run.data, run.screening), []).append(own)
    found = []
    for run, own in zip(runs, settings, strict=True):
        others = groups.get((run.label, run.data, run.screening), [])
        differing = [key for key in own if any(of_run.get(key) != own[key] for of_run in others)]
        marks = [f"{key.removeprefix('model.')}={own[key]}" for key in differing]
        if marks:
            run = replace(run, label=" ".join([run.label, *marks]))
        found.append(run)
    return found


def run_dirs_below(folder: Path) -> list[Path]:
    """Return the run directories at or below a folder, also of runs that failed before they began."""
    if holds_run(folder) or (folder / "summary.json").exists():
        return [folder]
    marks = ("summary.json", "metrics.jsonl", "failure.json", OUTPUT)
    return sorted({path.parent for mark in marks for path in folder.rglob(mark)})


def _target(config: Mapping[str, Any], name: str) -> str:
    """The name of what a node builds, where no better one is known."""
    return str((config.get(name) or {}).get("_target_", "unknown")).rpartition(".")[2]

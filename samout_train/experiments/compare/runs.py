"""Read the runs of a comparison from their directories."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from samout_train.checkpoint import holds_run, is_earlier, recorded_data, scalars
from samout_train.config import ConfigError, saved_choice, saved_config
from samout_train.experiments.compare.record import entry_of
from samout_train.experiments.jobs import OUTPUT, Outcome, curve_of, outcome
from samout_train.runtime import finite_or_null

Summary = Mapping[str, Any]
# Runs that differ in these settings get different labels.
SETTINGS = ("model", "init_from", "optimizer", "schedule", "data", "trainer", "precision")

DIGEST = "data.sha256"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training.

    Args:
        label: Label of its model in the comparison.
        data: The name of the data that it was trained on.
        run_dir: Its directory.
        rate: Its learning rate; None if unknown.
        seed: Its seed; None if unknown.
        counts: True if it is scored, false if a rate or setting is chosen by it; None outside of a comparison.
        screening: Whether it is a short run of a screening.
        leader: Whether its seed is one on which only leaders are scored.
        settings: The settings other than the rate that the comparison chooses, by dotted key.
        tries: Key of the setting that the run tries; None for other runs.
        task: Whether it is trained on a task that goes with the text of its comparison.
        budget: Budget of a run at a further size; None for other runs.
        config: The composed configuration; empty if the run left none.
        outcome: Its state and final figures.
    """

    label: str
    data: str
    run_dir: Path
    rate: float | None
    seed: int | None
    counts: bool | None
    screening: bool = False
    leader: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    tries: str | None = None
    task: bool = False
    budget: str | None = None
    config: Mapping[str, Any] = field(repr=False)
    outcome: Outcome

    @property
    def summary(self) -> Summary | None:
        """Return its final figures; None if it has none."""
        return self.outcome.summary

    @property
    def loss(self) -> float | None:
        """Return the loss on the whole validation split, in nats; None if there is none, or it is not a number."""
        return self.outcome.loss

    @cached_property
    def curve(self) -> list[tuple[int, float]]:
        """Return step and loss of each evaluation on the fixed batches."""
        return curve_of(self.run_dir)


def read_run(run_dir: Path) -> Run:
    """Return a run, with what the record of its comparison has about it.

    Args:
        run_dir: Its directory.
    """
    found = outcome(run_dir)
    try:
        config = finite_or_null(saved_config(run_dir / ".hydra" / "config.yaml"))
        content = recorded_data(run_dir)
        if "sha256" in content:  # the same path may have held another text
            config["data"] = {**config["data"], "sha256": str(content["sha256"])[:12]}
    except ConfigError:
        config = {}
    entry = entry_of(run_dir)
    if entry is not None:
        return Run(run_dir=run_dir, config=config, outcome=found, **vars(entry))
    rate, seed = (config.get("optimizer") or {}).get("lr"), config.get("seed")
    if rate is not None:
        rate = float(rate)
    if seed is not None:
        seed = int(seed)
    return Run(
        label=_name_of("model", found, run_dir, config),
        data=_name_of("data", found, run_dir, config),
        run_dir=run_dir,
        rate=rate,
        seed=seed,
        counts=None,
        config=config,
        outcome=found,
    )


def _name_of(part: str, found: Outcome, run_dir: Path, config: Mapping[str, Any]) -> str:
    """Return the name of the model or the data of a run, from the first source that has one."""
    summary = found.summary or {}
    return str(summary.get(part) or saved_choice(run_dir, part) or _target(config, part))


def told_apart(runs: Sequence[Run]) -> list[Run]:
    """Return the runs, with distinct labels if runs of one label and data have different settings.

    Learning rate, seed and what a comparison chooses do not count, nor do settings that do not affect training. A
    setting that an earlier version lacked counts as the value that reproduces that version.
    """
    settings = []
    groups: dict[Any, list[dict[str, Any]]] = {}
    for run in runs:
        own = scalars({key: run.config.get(key) for key in SETTINGS})
        for key in ("optimizer.lr", *run.settings):
            own.pop(key, None)
        settings.append(own)
        if own:  # the settings of a run without a configuration are unknown
            groups.setdefault(_alike(run), []).append(own)
    found = []
    for run, own in zip(runs, settings, strict=True):
        others = groups.get(_alike(run), [])
        marks = []
        for key, value in own.items():
            known = others
            if key == DIGEST:  # a run that has just begun has not recorded it
                known = [of_run for of_run in others if key in of_run]
            if not all(of_run[key] == value if key in of_run else is_earlier(key, value) for of_run in known):
                marks.append(f"{key.removeprefix('model.')}={value}")
        if marks:
            run = replace(run, label=" ".join([run.label, *marks]))
        found.append(run)
    return found


def _alike(run: Run) -> tuple[object, ...]:
    """Return the key shared by runs that need the same settings; runs of a screening have fewer steps, for example."""
    return run.label, run.data, run.screening, run.task, run.budget


def run_dirs_below(folder: Path) -> list[Path]:
    """Return the run directories at or below a folder, including runs that failed before they began."""
    if holds_run(folder) or (folder / "summary.json").exists():
        return [folder]
    found: set[Path] = set()
    for mark in ("summary.json", "metrics.jsonl", "failure.json", OUTPUT):
        found.update(path.parent for path in folder.rglob(mark))
    return sorted(found)


def _target(config: Mapping[str, Any], name: str) -> str:
    """Return the name of what a node builds."""
    return str((config.get(name) or {}).get("_target_", "unknown")).rpartition(".")[2]

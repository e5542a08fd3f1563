"""Sweeps: their jobs, where each lies, and which of them are done already.

A job's directory follows from its settings alone, so a sweep that is started again in the same `hydra.sweep.dir` finds
what it has: finished jobs are left out, and those that were stopped go on from their checkpoints.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from samout_train.config import Composed, ConfigError
from samout_train.figures import read_figures, write_figures
from samout_train.ledger import Job
from samout_train.overrides import key_of
from samout_train.run_directory import holds_run, other_settings
from samout_train.signatures import mistakes_in_call
from samout_train.staged import Stages

LONGEST_NAME = 120
RECORD = "sweep.json"
# Of a job, by launcher: submitit ends one after an hour by itself.
MINUTES = {"hydra/launcher=submitit_local": 7 * 24 * 60, "hydra/launcher=submitit_slurm": 24 * 60}
# Of a job that is there already, these must be as they are asked for; callbacks may end a run.
DECISIVE_KEYS = ("seed", "precision", "model", "data", "optimizer", "schedule", "trainer", "callbacks", "resume")


def register_job_directory() -> None:
    """Makes `${job_directory:...}` known, which names a job's directory in a sweep."""
    OmegaConf.register_new_resolver("job_directory", _job_directory, replace=True)


def jobs_of(words: Sequence[str], parameters: Mapping[str, Any]) -> list[list[str]]:
    """The overrides of each job: all combinations, so that a mistake in the last one stops the first.

    Args:
        words: As they were typed, without what is wrong.
        parameters: What the configuration sweeps over by itself, `hydra.sweeper.params`; what was typed has priority.

    Raises:
        ConfigError: if that makes no sweep.
    """
    try:
        parser = OverridesParser.create()
        overrides = parser.parse_overrides([*(f"{key}={value}" for key, value in parameters.items()), *words])
        batches = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    except (HydraException, ValueError) as error:
        raise ConfigError(f"these values make no sweep: {error}") from error
    return [list(job) for batch in batches for job in batch]


def first_stage(words: Sequence[str], stages: Mapping[str, Any]) -> list[list[str]]:
    """The overrides of each job in the first of two stages; those of the second differ in seed and steps.

    Args:
        words: As they were typed, without what is wrong.
        stages: The arguments of `Stages`.

    Raises:
        ConfigError: if something is wrong with those, or several values were typed for a key.
    """
    if several := [word for word in words if word not in without_sweeps(words)]:
        raise ConfigError(f"{several[0]}: this experiment sweeps over forms and rates by itself: give one value")
    if found := mistakes_in_call("hydra.sweeper", Stages, stages):
        raise ConfigError("\n".join(found))
    try:
        return [[*words, *job.overrides] for job in Stages(**stages).screening()]
    except ValueError as error:
        raise ConfigError(f"hydra.sweeper.{error}") from error


def without_sweeps(words: Sequence[str]) -> list[str]:
    """What all jobs have in common of what was typed."""
    parser = OverridesParser.create()
    return [word for word in words if not parser.parse_override(word).is_sweep_override()]


def common_keys(words: Sequence[str], swept: Mapping[str, Any]) -> list[str]:
    """Keys that stay out of the names of jobs: what all have in common, but for what the configuration sweeps over, so
    that a part of its sweep lies where the whole would.

    Args:
        words: As they were typed.
        swept: `hydra.sweeper.params` of the configuration.
    """
    parser = OverridesParser.create()
    keys = [parser.parse_override(word).key_or_group for word in without_sweeps(words)]
    return [key for key in keys if key not in swept]


def words_of_sweep(words: Sequence[str], typed: Sequence[str], swept: Mapping[str, Any]) -> list[str]:
    """Overrides as Hydra has to get them for a sweep.

    Args:
        words: As Hydra has to get them for a run.
        typed: As they were typed.
        swept: `hydra.sweeper.params` of the configuration: what was typed takes its place under the very same key.
    """
    settings = [word.removeprefix("++") if key_of(word) in swept else word for word in words]
    left_out = common_keys(typed, swept)
    minutes = next((MINUTES[word] for word in typed if word in MINUTES), None)
    if minutes is not None and not any(key_of(word) == "hydra.launcher.timeout_min" for word in typed):
        settings.append(f"hydra.launcher.timeout_min={minutes}")
    return settings + ([f"hydra.job.config.override_dirname.exclude_keys=[{','.join(left_out)}]"] if left_out else [])


def sweep_problems(composed: Composed, job: Sequence[str], left_out: Sequence[str]) -> list[str]:
    """What speaks against a job in the directory of its sweep; looks only.

    Args:
        composed: The job's configuration.
        job: Its overrides.
        left_out: Keys that stay out of its name.
    """
    folder = Path(composed.sweep_dir)
    if folder == Path():
        return ["hydra.sweep.dir: is empty: give a directory"]
    run_dir = folder / job_name(job, left_out)
    if not holds_run(run_dir):
        return []
    return [
        f"hydra.sweep.dir={folder}: {difference}: give another directory"
        for difference in other_settings(run_dir, composed.config, DECISIVE_KEYS)
    ]


def job_name(job: Sequence[str], left_out: Sequence[str]) -> str:
    """The name of a job's directory.

    Args:
        job: Its overrides.
        left_out: Keys that stay out of its name.
    """
    return _job_directory(",".join(word for word in job if key_of(word) not in left_out))


def write_sweep(
    folder: Path, *, command: Sequence[str], flags: Sequence[str], jobs: Mapping[str, Sequence[str]]
) -> None:
    """Leaves in a sweep's directory what its jobs are, beside those that it knew of before.

    Args:
        folder: Of the sweep.
        command: What was typed.
        flags: What the command line of each job begins with.
        jobs: By name, the words of each as a person would type them; none where the sweep decides on some itself.

    Raises:
        OSError: if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = read_sweep(folder).get("jobs", {})
    known = {name: [*flags, *words] for name, words in jobs.items()}
    write_figures(folder / RECORD, {"command": list(command), "jobs": before | known})


def sweep_jobs(folder: Path) -> list[Job]:
    """The jobs of a sweep, in their order; none where there is no sweep, or it decides on its jobs itself."""
    return [Job(folder / name, tuple(words)) for name, words in read_sweep(folder).get("jobs", {}).items()]


def read_sweep(folder: Path) -> dict[str, Any]:
    """What a sweep left in its directory; nothing where there is none."""
    content = read_figures(folder / RECORD)
    return content if isinstance(content.get("jobs"), dict) else {}


def _job_directory(overrides: Any) -> str:
    """`model=v8,optimizer.lr=0.001`: readable, and one folder whatever the values are."""
    words = re.findall(r"(?:[^,\[\]{}]|\[[^\]]*\]|\{[^}]*\})+", str(overrides))  # commas in brackets part nothing
    in_order = ",".join(sorted(word.removeprefix("++") for word in words))
    readable = re.sub(r"[^\w=.,+-]+", "-", in_order)
    if readable == in_order and len(readable) <= LONGEST_NAME:
        return readable.rstrip(".,-_") or "job"
    digest = hashlib.sha256(in_order.encode()).hexdigest()[:8]
    return f"{readable[:LONGEST_NAME].rstrip('.,-_')}-{digest}"

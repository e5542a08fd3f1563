"""Sweeps: their jobs, where each lies, and which of them are done already.

A job's directory follows from its settings alone, so a sweep that is started again in the same `hydra.sweep.dir` finds
what it has: finished jobs are left out, and those that were stopped go on from their checkpoints.
"""

import hashlib
import logging
import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from samout_train.checkpoint import (
    DataNow,
    DirectoryRefusedError,
    differences,
    holds_run,
    is_taken,
    other_kind,
    other_settings,
    scalars,
)
from samout_train.config import (
    Composed,
    combinations,
    is_swept,
    key_of,
    key_or_group,
    register_text,
    unresolved,
)
from samout_train.experiments.jobs import LOOK_SECONDS, Job, outcome
from samout_train.runtime import RESERVED, place_problem, read_figures, write_figures

LONGEST_NAME = 120  # bytes: file systems take 255, some encrypted ones 143
# Of a job's words, the paths that mean another file in another working directory.
RELATIVE = re.compile(
    r"\+*(?:data\.(?:path|paths|vocabulary_path)|resume|init_from)=(?!auto$|null$|$)[\['\"]*(?![\['\"/~\\$]|\w:)"
)
RECORD, LOCK = "sweep.json", ".lock"
# Of a job, by launcher: submitit ends one after an hour by itself.
MINUTES = {"hydra/launcher=submitit_local": 7 * 24 * 60, "hydra/launcher=submitit_slurm": 24 * 60}
# Of a job that is there already, these must be as they are asked for; callbacks may end a run.
DECISIVE_KEYS = (
    "seed",
    "precision",
    "model",
    "data",
    "optimizer",
    "schedule",
    "trainer",
    "callbacks",
    "resume",
    "init_from",
)
SECONDS_TO_SAY = 5.0  # what a process makes, after it took a directory: it is the first thing it writes
log = logging.getLogger(__name__)


def register_job_directory() -> None:
    """Make known `${job_directory:}`, which names a job's directory in a sweep, and `${output_directory:}`.

    What both are made of is text that has been resolved already, or is as it was typed.
    """
    register_text("job_directory", lambda root: _job_directory(unresolved(root, "hydra.job.override_dirname")))
    register_text("output_directory", lambda root: str(unresolved(root, "hydra.runtime.output_dir")))


def jobs_of(words: Sequence[str], parameters: Mapping[str, Any]) -> list[list[str]]:
    """Return the overrides of each job: all combinations, so that a mistake in the last one stops the first.

    Args:
        words: As they were typed, without what is wrong.
        parameters: What the configuration sweeps over by itself, `hydra.sweeper.params`; what was typed has priority.

    Raises:
        ConfigError: if that makes no sweep.
    """
    return combinations([*(f"{key}={value}" for key, value in parameters.items()), *words])


def without_sweeps(words: Sequence[str]) -> list[str]:
    """Return what all jobs have in common of what was typed."""
    return [word for word in words if not is_swept(word)]


def common_keys(words: Sequence[str], swept: Mapping[str, Any]) -> list[str]:
    """Keys that stay out of the names of jobs: what all have in common, but for what the configuration sweeps over, so
    that a part of its sweep lies where the whole would.

    Args:
        words: As they were typed.
        swept: `hydra.sweeper.params` of the configuration.
    """
    keys = [key_or_group(word) for word in without_sweeps(words)]
    return [key for key in dict.fromkeys(keys) if key not in swept]


def jobs_at_once(common: Composed, num_jobs: int) -> int:
    """Return how many jobs of a sweep run side by side on this machine and have to be given their share of its cores.

    joblib shares them out itself, and SLURM gives each job its own.

    Args:
        common: What they have in common.
        num_jobs: All of them.
    """
    return min(num_jobs, common.most_at_once or num_jobs) if common.launcher == "submitit_local" else 1


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
    """Return why a job cannot lie in the directory of its sweep; looks only.

    Args:
        composed: The job's configuration.
        job: Its overrides.
        left_out: Keys that stay out of its name.
    """
    folder = Path(composed.sweep_dir)
    if folder == Path():
        return ["hydra.sweep.dir: is empty: give a directory"]
    if problem := place_problem(folder):
        return [f"hydra.sweep.dir={folder}: {problem}"]
    if kind := other_kind(folder, "a sweep"):
        return [f"hydra.sweep.dir={folder}: holds {kind}: give another directory"]
    return job_problems(folder / job_name(job, left_out), composed.config)


def job_problems(run_dir: Path, config: Mapping[str, Any]) -> list[str]:
    """Return why a job cannot take a directory, or be counted as done by what lies there: it has other settings.

    Args:
        run_dir: Of the job, in the directory of its sweep.
        config: Of the job, as plain dictionaries, resolved.
    """
    return [
        f"hydra.sweep.dir={run_dir.parent}: {difference}: give another directory"
        for difference in other_settings(run_dir, config, DECISIVE_KEYS)
    ]


def data_problems(folder: Path, configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return why jobs cannot stand beside those of a sweep: the same settings of data, and other content.

    Args:
        folder: Of the sweep.
        configs: Those of the jobs that are asked for.
    """
    from samout_train.training import source_from

    there_now = DataNow(source_from)
    by_data = {str(config["data"]): config for config in configs}
    for job in sweep_jobs(folder):
        for config in by_data.values() if holds_run(job.run_dir) else ():
            same_settings = not other_settings(job.run_dir, config, ("data",))
            if same_settings and (other := there_now.other_than(job.run_dir, config)):
                return [f"{other}, or another hydra.sweep.dir"]
    return []


def problems_where_taken(run_dir: Path, config: Mapping[str, Any]) -> list[str]:
    """Return why a job that another process is at is not this one, once that process has said what it makes."""
    deadline = time.monotonic() + SECONDS_TO_SAY
    while is_taken(run_dir) and not (run_dir / ".hydra" / "config.yaml").exists() and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    return job_problems(run_dir, config)


def doubles(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each job that trains what an earlier one does, such as those of 0 and 0.0.

    Args:
        configs: Those of the jobs, by name.
    """
    first: dict[frozenset[tuple[str, Any]], str] = {}
    found = []
    for name, config in configs.items():
        settings = frozenset(scalars({key: value for key, value in config.items() if key != "run_dir"}).items())
        if (same := first.setdefault(settings, name)) != name:
            found.append(f"{name}: has the same settings as {same}: both are trained; leave one of the values out")
    return found


def job_name(job: Sequence[str], left_out: Sequence[str]) -> str:
    """Return the name of a job's directory.

    Args:
        job: Its overrides.
        left_out: Keys that stay out of its name.
    """
    return _job_directory(",".join(word for word in job if key_of(word) not in left_out))


def write_sweep(
    folder: Path,
    *,
    command: Sequence[str],
    flags: Sequence[str],
    jobs: Mapping[str, Sequence[str]],
    settings_of: Callable[[Sequence[str]], Mapping[str, Any] | None] = lambda words: None,
) -> None:
    """Leaves in a sweep's directory what its jobs are, beside those that it knew of before.

    Args:
        folder: Of the sweep.
        command: What was typed.
        flags: What the command line of each job begins with.
        jobs: By name, the words of each as a person would type them; none where the sweep decides on some itself.
        settings_of: Composes the words of a job; asked only where a job was recorded with other words before.

    Raises:
        DirectoryRefusedError: if the sweep that was recorded before has a job of the same name with other settings.
        OSError: if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):  # two sweeps may start at once
        before = read_sweep(folder)
        known = {name: [*flags, *words] for name, words in jobs.items()}
        if found := _other_jobs(folder, before, known, settings_of):
            raise DirectoryRefusedError(*dict.fromkeys(found))
        directories = before.get("directories", {}) | dict.fromkeys(known, str(Path.cwd()))
        record = {"command": list(command), "jobs": before.get("jobs", {}) | known, "directories": directories}
        write_figures(folder / RECORD, record)


def _other_jobs(
    folder: Path,
    before: Mapping[str, Any],
    known: Mapping[str, Sequence[str]],
    settings_of: Callable[[Sequence[str]], Mapping[str, Any] | None],
) -> list[str]:
    """Return how the jobs of a record differ from those of the same name; they may not have begun yet."""
    found = []
    for name, words in known.items():
        then = before.get("jobs", {}).get(name, words)
        directory = before.get("directories", {}).get(name, str(Path.cwd()))
        if directory != str(Path.cwd()) and (relative := [word for word in words if RELATIVE.match(word)]):
            found.append(
                f"hydra.sweep.dir={folder}: {relative[0]}: is relative, and this sweep was started in {directory}: "
                "start it there, or give another directory"
            )
        if list(then) == list(words):
            continue
        old, new = settings_of(then), settings_of(words)
        for difference in differences(old, new, DECISIVE_KEYS) if old is not None and new is not None else []:
            found.append(
                f"hydra.sweep.dir={folder}: {difference}: {name} is another sweep's job: give another directory"
            )
    return found


def sweep_jobs(folder: Path) -> list[Job]:
    """Return the jobs of a sweep, in their order; none where there is no sweep, or it decides on its jobs itself."""
    record = read_sweep(folder)
    directories = record.get("directories", {})
    return [
        Job(folder / name, tuple(words), Path(directories[name]) if name in directories else None)
        for name, words in record.get("jobs", {}).items()
    ]


def read_sweep(folder: Path) -> dict[str, Any]:
    """Return what a sweep left in its directory; nothing where there is none."""
    content = read_figures(folder / RECORD)
    return content if isinstance(content.get("jobs"), dict) else {}


def wait_for_others(run_dirs: Sequence[Path]) -> None:
    """Wait for jobs that another process is at, such as those of the same sweep started twice."""
    for run_dir in run_dirs:
        if outcome(run_dir).state == "running":
            log.info("waiting for another process, which is at %s", run_dir)
            while outcome(run_dir).state == "running":
                time.sleep(LOOK_SECONDS)


def _job_directory(overrides: Any) -> str:
    """`model=v8,optimizer.lr=0.001`: readable, and one folder whatever the values are and whatever the file system is.

    A digest is added wherever the name is not the settings themselves: where characters were replaced, where it was
    cut, and where a file system that ignores case, or writes accents another way, could take two names for one.
    """
    words = re.findall(r"(?:[^,\[\]{}]|\[[^\]]*\]|\{[^}]*\})+", str(overrides))  # commas in brackets part nothing
    in_order = ",".join(sorted(word.removeprefix("++") for word in words))
    readable = re.sub(r"[^\w=.,+-]+", "-", in_order)
    short = readable.encode()[:LONGEST_NAME].decode(errors="ignore").rstrip(".,-_").lstrip(".-")
    name = short or "job"
    if RESERVED.match(name):
        name = f"job-{name}"
    if not in_order or name == unicodedata.normalize("NFC", in_order).casefold() == in_order:
        return name
    digest = hashlib.sha256(in_order.encode()).hexdigest()[:8]
    return f"{name}-{digest}"

"""Sweeps: their jobs, the directory of each, and which of them are done already.

A job's directory follows from its settings alone. So a sweep that is started again in the same `hydra.sweep.dir` leaves
finished jobs out, and resumes stopped ones from their checkpoints.
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
    Problem,
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
# Words of a job with a relative path, which would name another file in another working directory.
RELATIVE = re.compile(
    r"\+*(?:data\.(?:path|paths|vocabulary_path)|resume|init_from)=(?!auto$|null$|$)[\['\"]*(?![\['\"/~\\$]|\w:)"
)
RECORD, LOCK = "sweep.json", ".lock"
# The time limit of a job by launcher; submitit's own is one hour.
MINUTES = {"hydra/launcher=submitit_local": 7 * 24 * 60, "hydra/launcher=submitit_slurm": 24 * 60}
# The settings of an existing job that must equal the requested ones, including callbacks, which may end a run.
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
SECONDS_TO_SAY = 5.0  # for a process that took a directory to write its settings, which it does first
log = logging.getLogger(__name__)


def register_job_directory() -> None:
    """Register `${job_directory:}`, which names a job's directory in a sweep, and `${output_directory:}`.

    Both are made of text that is resolved already, or is as it was typed.
    """
    register_text("job_directory", lambda root: _job_directory(unresolved(root, "hydra.job.override_dirname")))
    register_text("output_directory", lambda root: str(unresolved(root, "hydra.runtime.output_dir")))


def jobs_of(words: Sequence[str], parameters: Mapping[str, Any]) -> list[list[str]]:
    """Return the overrides of each job: all combinations, so that a mistake in the last one stops the first.

    Args:
        words: As they were typed, without the wrong ones.
        parameters: The sweep of the configuration itself, `hydra.sweeper.params`; typed words take precedence.

    Raises:
        ConfigError: if they do not make a sweep.
    """
    swept = []
    for key, value in parameters.items():
        swept.append(f"{key}={value}")
    return combinations([*swept, *words])


def without_sweeps(words: Sequence[str]) -> list[str]:
    """Return the typed words that all jobs have in common."""
    return [word for word in words if not is_swept(word)]


def common_keys(words: Sequence[str], swept: Mapping[str, Any]) -> list[str]:
    """Return the keys to leave out of the names of jobs: those that all jobs have in common.

    A key that the configuration sweeps over is kept, so that a part of its sweep uses the directories of the whole.

    Args:
        words: As they were typed.
        swept: `hydra.sweeper.params` of the configuration.
    """
    keys = []
    for word in without_sweeps(words):
        key = key_or_group(word)
        if key not in swept and key not in keys:
            keys.append(key)
    return keys


def jobs_at_once(common: Composed, num_jobs: int) -> int:
    """Return the number of jobs of a sweep that run side by side on this machine and must share its cores.

    This is 1 with joblib, which shares out the cores itself, and with SLURM, which gives each job its own cores.

    Args:
        common: The configuration that the jobs have in common.
        num_jobs: Number of jobs.
    """
    if common.launcher != "submitit_local":
        return 1
    return min(num_jobs, common.most_at_once or num_jobs)


def words_of_sweep(words: Sequence[str], typed: Sequence[str], swept: Mapping[str, Any]) -> list[str]:
    """Return the overrides as Hydra needs them for a sweep.

    Args:
        words: As Hydra needs them for a run.
        typed: As they were typed.
        swept: `hydra.sweeper.params` of the configuration; a typed value replaces the one with exactly the same key.
    """
    settings = []
    for word in words:
        if key_of(word) in swept:
            word = word.removeprefix("++")
        settings.append(word)
    minutes = None
    for word in typed:
        if minutes is None:
            minutes = MINUTES.get(word)
    if minutes is not None and not any(key_of(word) == "hydra.launcher.timeout_min" for word in typed):
        settings.append(f"hydra.launcher.timeout_min={minutes}")
    left_out = common_keys(typed, swept)
    if left_out:
        settings.append(f"hydra.job.config.override_dirname.exclude_keys=[{','.join(left_out)}]")
    return settings


def check_sweep(composed: Composed, job: Sequence[str], left_out: Sequence[str]) -> list[Problem]:
    """Return why a job cannot use the directory of its sweep; nothing is written.

    Args:
        composed: The job's configuration.
        job: Its overrides.
        left_out: Keys left out of its name.
    """
    folder = Path(composed.sweep_dir)
    if folder == Path():
        return [Problem("hydra.sweep.dir", text="is empty", fix="give a directory")]
    problem = place_problem(folder)
    if problem is not None:
        return [Problem("hydra.sweep.dir", str(folder), text=problem)]
    kind = other_kind(folder, "a sweep")
    if kind is not None:
        return [Problem("hydra.sweep.dir", str(folder), text=f"holds {kind}", fix="give another directory")]
    return check_job(folder / job_name(job, left_out), composed.config)


def check_job(run_dir: Path, config: Mapping[str, Any]) -> list[Problem]:
    """Return the settings of a run in a job's directory that differ from those of the job.

    If any differ, the job cannot use the directory, and the run in it does not count as the job's.

    Args:
        run_dir: Directory of the job, in the directory of its sweep.
        config: Configuration of the job as plain dictionaries, resolved.
    """
    problems = []
    for difference in other_settings(run_dir, config, DECISIVE_KEYS):
        folder = str(run_dir.parent)
        problems.append(Problem("hydra.sweep.dir", folder, text=str(difference), fix="give another directory"))
    return problems


def check_job_data(folder: Path, configs: Iterable[Mapping[str, Any]]) -> list[Problem]:
    """Return why jobs cannot join a sweep: its data has the same settings as theirs, but other content.

    Args:
        folder: Directory of the sweep.
        configs: Configurations of the requested jobs.
    """
    from samout_train.training import source_from

    there_now = DataNow(source_from)
    by_data = {str(config["data"]): config for config in configs}
    for job in sweep_jobs(folder):
        if not holds_run(job.run_dir):
            continue
        for config in by_data.values():
            if other_settings(job.run_dir, config, ("data",)):
                continue
            other = there_now.other_than(job.run_dir, config)
            if other:
                return [Problem(text=f"{other}, or another hydra.sweep.dir")]
    return []


def check_taken_job(run_dir: Path, config: Mapping[str, Any]) -> list[Problem]:
    """Return why the job that another process runs in a directory is not this one.

    It waits a moment for that process to write its settings.
    """
    deadline = time.monotonic() + SECONDS_TO_SAY
    while is_taken(run_dir) and not (run_dir / ".hydra" / "config.yaml").exists() and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    return check_job(run_dir, config)


def doubles(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each job with the same settings as an earlier one, such as the jobs of 0 and 0.0.

    Args:
        configs: Configurations of the jobs, by name.
    """
    first: dict[frozenset[tuple[str, Any]], str] = {}
    found = []
    for name, config in configs.items():
        decisive = dict(config)
        decisive.pop("run_dir", None)
        same = first.setdefault(frozenset(scalars(decisive).items()), name)
        if same != name:
            found.append(f"{name}: has the same settings as {same}: both are trained; leave one of the values out")
    return found


def job_name(job: Sequence[str], left_out: Sequence[str]) -> str:
    """Return the name of a job's directory.

    Args:
        job: Its overrides.
        left_out: Keys left out of its name.
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
    """Write the record of a sweep into its directory; the jobs that it recorded before are kept.

    Args:
        folder: Directory of the sweep.
        command: The command, as typed.
        flags: The flags that the command line of each job begins with.
        jobs: The words of each job, by name, as a person would type them; empty if the sweep chooses some itself.
        settings_of: Composes the words of a job; called only if the job was recorded with other words before.

    Raises:
        DirectoryRefusedError: if the recorded sweep has a job of the same name with other settings.
        OSError: if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):  # two sweeps may start at once
        before = read_sweep(folder)
        known = {name: [*flags, *words] for name, words in jobs.items()}
        found = _other_jobs(folder, before, known, settings_of)
        if found:
            raise DirectoryRefusedError(*dict.fromkeys(found))
        directories = before.get("directories", {}) | dict.fromkeys(known, str(Path.cwd()))
        record = {"command": list(command), "jobs": before.get("jobs", {}) | known, "directories": directories}
        write_figures(folder / RECORD, record)


def _other_jobs(
    folder: Path,
    before: Mapping[str, Any],
    known: Mapping[str, Sequence[str]],
    settings_of: Callable[[Sequence[str]], Mapping[str, Any] | None],
) -> list[Problem]:
    """Return how recorded jobs, which may not have begun yet, differ from jobs of the same name."""
    here = str(Path.cwd())
    problems = []
    for name, words in known.items():
        then = before.get("jobs", {}).get(name, words)
        directory = before.get("directories", {}).get(name, here)
        relative = next(filter(RELATIVE.match, words), None)
        if directory != here and relative is not None:
            text = f"{relative}: is relative, and this sweep was started in {directory}"
            fix = "start it there, or give another directory"
            problems.append(Problem("hydra.sweep.dir", str(folder), text=text, fix=fix))
        if list(then) == list(words):
            continue
        old, new = settings_of(then), settings_of(words)
        if old is None or new is None:
            continue
        for difference in differences(old, new, DECISIVE_KEYS):
            text = f"{difference}: {name} is another sweep's job"
            problems.append(Problem("hydra.sweep.dir", str(folder), text=text, fix="give another directory"))
    return problems


def sweep_jobs(folder: Path) -> list[Job]:
    """Return the jobs of a sweep in order; empty if there is no sweep, or it chooses its jobs itself."""
    record = read_sweep(folder)
    jobs = []
    for name, words in record.get("jobs", {}).items():
        directory = record.get("directories", {}).get(name)
        if directory is not None:
            directory = Path(directory)
        jobs.append(Job(folder / name, tuple(words), directory))
    return jobs


def read_sweep(folder: Path) -> dict[str, Any]:
    """Return the record of a sweep; empty if there is none."""
    content = read_figures(folder / RECORD)
    if not isinstance(content.get("jobs"), dict):
        return {}
    return content


def wait_for_others(run_dirs: Sequence[Path]) -> None:
    """Wait for jobs that another process runs, such as those of the same sweep started twice."""
    for run_dir in run_dirs:
        if outcome(run_dir).state == "running":
            log.info("waiting    for another process, which runs %s", run_dir)
            while outcome(run_dir).state == "running":
                time.sleep(LOOK_SECONDS)


def _job_directory(overrides: Any) -> str:
    """Return a readable name such as `model=v8,optimizer.lr=0.001`, which any file system takes as one folder.

    A digest is added if the name does not spell the settings exactly: if characters were replaced, if it was cut, or if
    a file system that ignores case, or writes accents another way, could take two names for one.
    """
    words = re.findall(r"(?:[^,\[\]{}]|\[[^\]]*\]|\{[^}]*\})+", str(overrides))  # commas in brackets separate nothing
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

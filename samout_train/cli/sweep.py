"""`python -m samout_train sweep action=status dir=DIR`: show the state of a sweep's jobs, and run unfinished ones."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from samout_train.cli.verb import verb
from samout_train.config import ConfigError, Positive
from samout_train.runtime import dashboard_command, program, shell_word, text_setting, typed_line

if TYPE_CHECKING:
    from samout_train.experiments import Job, Outcome


@verb
def sweep(*, action: Literal["status", "resume", "retry"], dir: str, jobs: Annotated[int, Positive]) -> int:
    """Shows the state of a sweep's jobs, and runs those that are not finished.

    Returns:
        The exit code: 0 all jobs are done, 1 some are not, 2 the request was wrong, 130 or 143 stopped by a signal.
    """
    from samout_train.experiments import described, job_bar, outcome, read_record, read_sweep, sweep_jobs
    from samout_train.runtime import StopRequestedError

    folder = Path(dir)
    record, all_jobs = read_sweep(folder), sweep_jobs(folder)
    if not record and (comparison := read_record(folder)).get("runs"):
        all_jobs = _jobs_of_comparison(folder, comparison, action)
    elif not record or not all_jobs:
        raise ConfigError(f"dir={folder}: {_without_jobs(folder, record)}")
    asked = all_jobs
    if action != "status":
        asked = _jobs_to_run(folder, all_jobs, retries=action == "retry")
        try:
            with job_bar(len(asked)) as bar:
                bar.run(asked, at_once=jobs)
        except StopRequestedError as stop:
            print(f"{stop}: finished runs are kept; repeat the same command to resume", file=sys.stderr)
            return stop.exit_code
    counts = Counter[str]()
    width = max((len(job.name) for job in all_jobs), default=0)
    for job in all_jobs:
        found = outcome(job.run_dir)
        counts[found.state] += 1
        if action == "status":
            print(f"  {described(job, found, width)}")
        elif job not in asked:
            print(f"  {described(job, found, width)}: action=retry runs it again")
    print(f"{len(all_jobs)} jobs in {folder}: {', '.join(f'{count} {state}' for state, count in counts.items())}")
    print(f"dashboard  {dashboard_command(folder)}")
    return int(any(state != "done" for state in counts))


def _jobs_of_comparison(folder: Path, record: dict[str, Any], action: str) -> list["Job"]:
    """Return the runs of a comparison that have begun.

    Raises:
        ConfigError: if they are to be run: only the comparison itself decides which runs to make.
    """
    from samout_train.experiments import Job, outcome

    if action != "status":
        typed = str(record.get("command")).removeprefix("samout-train ")
        again = f"{typed_line(program())} {typed} {shell_word(text_setting('run_dir', folder))}"
        raise ConfigError(f"dir={folder}: a comparison is resumed by its own command: {again}")
    found = []
    for name in record["runs"]:
        job = Job(folder / name, ())
        if outcome(job.run_dir).state != "waiting":
            found.append(job)
    return found


def _without_jobs(folder: Path, record: dict[str, Any]) -> str:
    """Return why a folder has no jobs of a sweep, and what to do."""
    if record:
        command = typed_line([*program(), *record["command"]])
        return f"this sweep chooses its jobs as it runs: to resume, repeat its command: {command}"
    if (folder / "sweep.json").is_file():
        return "its sweep.json is damaged: the command that began the sweep writes it again"
    if (folder / "multirun.yaml").is_file():
        return "lacks its sweep.json: the command that began the sweep writes it again"
    return "holds no sweep: give the hydra.sweep.dir of a sweep, or the run_dir of a comparison"


def _jobs_to_run(folder: Path, jobs: Sequence["Job"], *, retries: bool) -> list["Job"]:
    """Return all jobs, those that failed by themselves only if `retries` is true; finished ones take no time.

    Raises:
        ConfigError: if the directory in which they were started no longer exists.
    """
    from samout_train.experiments import outcome

    asked = []
    for job in jobs:
        if job.directory is not None and not job.directory.is_dir():
            raise ConfigError(
                f"dir={folder}: its jobs were started in {job.directory}, which no longer exists, and their relative "
                "paths start there: make that directory again, with the files that they read"
            )
        if retries or not _failed_by_itself(outcome(job.run_dir)):
            asked.append(job)
    return asked


def _failed_by_itself(found: "Outcome") -> bool:
    return found.state == "FAILED" and found.why != "killed"

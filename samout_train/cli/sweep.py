"""`python -m samout_train sweep action=status dir=DIR`: what became of a sweep's jobs, and the missing ones made."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from samout_train.cli.verb import verb
from samout_train.config import ConfigError, Positive
from samout_train.runtime import dashboard_command, program, shell_word, text_setting, typed_line

if TYPE_CHECKING:
    from samout_train.experiments import Outcome


@verb
def sweep(*, action: Literal["status", "resume", "retry"], dir: str, jobs: Annotated[int, Positive]) -> int:
    """Says what became of the jobs of a sweep, and makes those that are missing.

    Returns:
        The exit code: 0 all jobs are done, 1 some are not, 2 the request was wrong, 130 or 143 stopped by a signal.
    """
    from samout_train.experiments import Job, described, job_bar, outcome, read_record, read_sweep, sweep_jobs
    from samout_train.runtime import StopRequestedError

    folder = Path(dir)
    record, all_jobs = read_sweep(folder), sweep_jobs(folder)
    if not record and (runs := read_record(folder).get("runs")):
        all_jobs = [job for name in runs if outcome((job := Job(folder / name, ())).run_dir).state != "waiting"]
        if action != "status":
            typed = str(read_record(folder).get("command")).removeprefix("samout-train ")
            again = f"{typed_line(program())} {typed} {shell_word(text_setting('run_dir', folder))}"
            raise ConfigError(f"dir={folder}: a comparison goes on where it is started again: {again}")
    elif not record and (folder / "sweep.json").is_file():
        raise ConfigError(f"dir={folder}: its sweep.json is damaged: the command that began the sweep writes it again")
    elif not record and (folder / "multirun.yaml").is_file():
        raise ConfigError(f"dir={folder}: lacks its sweep.json: the command that began the sweep writes it again")
    elif not record:
        raise ConfigError(f"dir={folder}: holds no sweep: give what hydra.sweep.dir was, or a comparison")
    elif not all_jobs:
        command = typed_line([*program(), *record["command"]])
        raise ConfigError(f"dir={folder}: this sweep decides on its jobs itself: start it again to go on: {command}")
    if action == "status":
        outcomes = {job.name: outcome(job.run_dir) for job in all_jobs}
        for job in all_jobs:
            print(f"  {described(job, outcomes[job.name])}")
    else:
        retries = action == "retry"
        if gone := [str(job.directory) for job in all_jobs if job.directory is not None and not job.directory.is_dir()]:
            raise ConfigError(
                f"dir={folder}: its jobs were started in {gone[0]}, which is not there, and their relative paths start "
                "from it: make that directory again, with what they read"
            )
        asked = [job for job in all_jobs if retries or not _failed_by_itself(outcome(job.run_dir))]
        try:
            with job_bar(len(asked)) as bar:
                bar.run(asked, at_once=jobs)
        except StopRequestedError as stop:
            print(f"{stop}: what ran is saved; the same command goes on", file=sys.stderr)
            return stop.exit_code
        outcomes = {job.name: outcome(job.run_dir) for job in all_jobs}
        for job in (job for job in all_jobs if job not in asked):
            print(f"  {described(job, outcomes[job.name])}: action=retry makes it again")
    states = [found.state for found in outcomes.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    print(f"{len(all_jobs)} jobs in {folder}: {counts}")
    print(f"dashboard  {dashboard_command(folder)}")
    return int(any(state != "done" for state in states))


def _failed_by_itself(found: "Outcome") -> bool:
    return found.state == "FAILED" and found.why != "killed"

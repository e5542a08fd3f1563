"""Many jobs for people: a bar over them, and a line for each."""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from samout_train.experiments.jobs import Job, Outcome, outcome, run_jobs
from samout_train.runtime import Bar, is_terminal

LONGEST_LINE = 16_384  # bytes of metrics.jsonl that are read from its end
SECONDS_A_LOOK, SECONDS_A_LINE = 1.0, 60.0  # at the steps of what runs, on a terminal and elsewhere


class JobBar:
    """Runs jobs with a bar on standard error and their results on standard output.

    Args:
        bar: Of as many as there will be.
    """

    def __init__(self, bar: Bar) -> None:
        self._bar, self._looked_at = bar, 0.0
        self._interval = SECONDS_A_LOOK if is_terminal(sys.stderr) else SECONDS_A_LINE

    def run(self, jobs: Sequence[Job], *, at_once: int) -> dict[str, Outcome]:
        """Runs what is missing of them, as `ledger.run_jobs` does.

        Args:
            jobs: All of them.
            at_once: So many at a time.
        """
        there = sum(outcome(job.run_dir).state == "done" for job in jobs)
        self._bar.initial += there  # they say nothing of how long the others will take
        self._bar.update(there)
        return run_jobs(jobs, at_once=at_once, told=self._tell, watched=self._watch)

    def _tell(self, job: Job, found: Outcome) -> None:
        self._bar.update()
        with suppress(BrokenPipeError):  # nobody reads on, and the runs go on
            self._bar.write(f"  {described(job, found)}", file=sys.stdout)
            sys.stdout.flush()

    def _watch(self, running: Sequence[Job]) -> None:
        if time.monotonic() - self._looked_at > self._interval:
            self._looked_at = time.monotonic()
            steps = (f"{job.name} step {last_step(job.run_dir):,}" for job in running)
            self._bar.set_postfix_str(", ".join(steps))


@contextmanager
def job_bar(total: int) -> Iterator[JobBar]:
    """A bar over so many jobs."""
    with Bar(desc="runs", total=total, unit="run", dynamic_ncols=True, smoothing=0) as bar:
        yield JobBar(bar)


def described(job: Job, found: Outcome) -> str:
    """A line for people: the job, and what it came to."""
    if found.summary is None:
        goes_on = f"step {last_step(job.run_dir):,}" if found.state == "running" else "goes on when it is started again"
        return f"{found.state:<8} {job.name}  {found.error or goes_on}"
    loss = found.summary.get("val_loss_nats")
    nats = "no loss" if loss is None else f"{loss:.4f} nats"
    return f"{found.state:<8} {job.name}  {nats}, {found.summary.get('train_seconds', 0.0):.1f} s of training"


def last_step(run_dir: Path) -> int:
    """The last step that a run has logged; 0 where there is none."""
    try:
        with (run_dir / "metrics.jsonl").open("rb") as file:
            file.seek(-min(LONGEST_LINE, file.seek(0, os.SEEK_END)), os.SEEK_END)
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):  # the end of it is being written, or its beginning was not read
            continue
    return 0

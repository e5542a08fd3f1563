"""The jobs of many runs: what became of each, and the missing ones made, each in a process of its own.

Nothing is kept but the run directories themselves. What a job came to follows from its own: `summary.json` says that it
is done, the lock that a process is at it, `failure.json` why it failed. So whatever dies, nothing has to be put right.
For people, there is a bar over the jobs (`job_bar`) and a line for each (`described`).
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from samout_train.checkpoint import holds_run, is_taken
from samout_train.runtime import (
    Bar,
    StopSignals,
    ask_to_stop,
    child_program,
    is_terminal,
    own_group,
    read_figures,
    share_of_cores,
    text_setting,
    write_figures,
)

State = Literal["done", "running", "FAILED", "stopped", "waiting"]
Why = Literal["killed", "settings", "error"]
OUTPUT, FAILURE = "output.txt", "failure.json"
STOPPED_CODES, REFUSED_CODE = (130, 143), 2
LOOK_SECONDS = 0.1
LONGEST_LINE = 16_384  # bytes of metrics.jsonl that are read from its end
SECONDS_A_LOOK, SECONDS_A_LINE = 1.0, 60.0  # at the steps of what runs, on a terminal and elsewhere


@dataclass(frozen=True)
class Job:
    """One training that is to be made.

    Args:
        run_dir: Where it lies; the name of this directory is that of the job.
        words: The command line of `train`, without `run_dir` and `resume`.
        directory: The working directory that relative paths in its words start from; None for that of this program.
    """

    run_dir: Path
    words: tuple[str, ...]
    directory: Path | None = None

    @property
    def name(self) -> str:
        """For people."""
        return self.run_dir.name


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job.

    Args:
        state: `done`; `running`; `FAILED`; `stopped` by a signal, or killed with all that could have told of it; or
            `waiting`.
        summary: What `summary.json` has of a job that is done.
        error: The first line of what went wrong with one that failed.
        why: Of one that failed: `killed`; `settings`, where the same settings would end the same way; or `error`.
    """

    state: State
    summary: Mapping[str, Any] | None = None
    error: str | None = None
    why: Why | None = None


def outcome(run_dir: Path) -> Outcome:
    """Return what became of the job in a directory; looks only."""
    summary = finished(run_dir)
    if summary is not None:
        return Outcome("done", summary)
    if is_taken(run_dir):
        return Outcome("running")
    try:
        failure = json.loads((run_dir / FAILURE).read_text(encoding="utf-8"))
        return Outcome("FAILED", error=str(failure["error"]), why=failure.get("why", "error"))
    except FileNotFoundError:
        return Outcome("stopped" if holds_run(run_dir) else "waiting")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Outcome("FAILED", error=f"{FAILURE} cannot be read ({error})", why="error")


def finished(run_dir: Path) -> dict[str, Any] | None:
    """Return the summary of a run that came to its end; None where there is none."""
    summary = read_figures(run_dir / "summary.json")
    return summary if "weights_sha256" in summary else None


def record_failure(run_dir: Path, error: str, why: Why = "error") -> None:
    """Leaves a note of why a run failed; none where it cannot be written, or another process is at the run by now.

    Args:
        run_dir: Of the run; it need not be there.
        error: What went wrong; its first line is kept.
        why: See `Outcome`.
    """
    if is_taken(run_dir):
        return
    lines = error.strip().splitlines()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_figures(run_dir / FAILURE, {"error": lines[0] if lines else "no reason was given", "why": why})
    except OSError:
        print(f"{run_dir}: a note of the failure cannot be written", file=sys.stderr)


def has_checkpoint(run_dir: Path) -> bool:
    """Return whether there is something of a run to go on from."""
    return any((run_dir / "checkpoints").glob("step_*.pt*"))


def forget_failure(run_dir: Path) -> None:
    """Takes that note away, where the run is tried again."""
    (run_dir / FAILURE).unlink(missing_ok=True)


def run_jobs(
    jobs: Sequence[Job],
    *,
    at_once: int,
    told: Callable[[Job, Outcome], None] = lambda job, outcome: None,
    watched: Callable[[Sequence[Job]], None] = lambda running: None,
) -> dict[str, Outcome]:
    """Runs what is missing: what is done stays as it is, what was stopped goes on, what failed is tried again.

    A job that another process is at, such as one that outlived a killed comparison, is waited for.

    Args:
        jobs: All of them.
        at_once: So many at a time, which then share the processor's threads.
        told: Gets each job that has ended, and what became of it.
        watched: Called now and then, with the jobs that run.

    Returns:
        What became of each, by name.

    Raises:
        StopRequestedError: if a signal came; the jobs that ran have saved what they need to go on.
    """
    found = {job.name: outcome(job.run_dir) for job in jobs}
    missing = [job for job in jobs if found[job.name].state != "done"]
    running: dict[str, tuple[Job, Process | None]] = {}

    def ended(job: Job, became: Outcome) -> None:
        del running[job.name]
        found[job.name] = became
        told(job, became)

    with StopSignals() as signals:
        try:
            while missing or running:
                while missing and len(running) < at_once and signals.received is None:
                    job = missing.pop(0)
                    running[job.name] = (job, None if is_taken(job.run_dir) else Process(job, at_once))
                signals.check()
                watched([job for job, _ in running.values()])
                time.sleep(LOOK_SECONDS)
                for job, process in list(running.values()):
                    became = outcome(job.run_dir) if process is None else process.became()
                    if became is None or became.state == "running":
                        # Also where the process itself found another one at its run: that one is waited for.
                        running[job.name] = (job, None if became is not None else process)
                    elif process is not None or became.state == "done":
                        ended(job, became)
                    else:  # what was waited for died: it goes on from where it was
                        del running[job.name]
                        missing.insert(0, job)
            signals.check()
        finally:
            _stop([process for _, process in running.values() if process is not None], signals.received)
    return found


class Process:
    """A training in a process and a session of its own: Ctrl-C reaches it through this program, once.

    Args:
        job: What it makes; it goes on where it was stopped.
        at_once: So many share the processor's threads.
    """

    def __init__(self, job: Job, at_once: int) -> None:
        self.job = job
        job.run_dir.mkdir(parents=True, exist_ok=True)
        forget_failure(job.run_dir)
        # Where it begins from another run's checkpoint, it does so once.
        begins_elsewhere = any(word.startswith("resume=") for word in job.words) and not has_checkpoint(job.run_dir)
        run_dir = text_setting("run_dir", job.run_dir.absolute())
        words = [*job.words, run_dir, *([] if begins_elsewhere else ["resume=auto"])]
        program = [*child_program(), "train", *words]
        with (job.run_dir / OUTPUT).open("ab") as output:
            self._printed_from = output.tell()
            self.process = subprocess.Popen(
                program,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | share_of_cores(at_once),
                cwd=job.directory,
                **own_group(),
            )

    def became(self) -> Outcome | None:
        """Return what became of it, None while it runs; what it could not say itself is said for it."""
        code = self.process.poll()
        if code is None:
            return None
        found = outcome(self.job.run_dir)
        if found.state in ("done", "FAILED", "running") or code in STOPPED_CODES:
            return found
        why: Why = "killed" if code < 0 else "settings" if code == REFUSED_CODE else "error"
        record_failure(self.job.run_dir, self._reason(code), why)
        return outcome(self.job.run_dir)

    def _reason(self, code: int) -> str:
        if code < 0:
            return f"killed by signal {-code} ({signal.Signals(-code).name})"
        with (self.job.run_dir / OUTPUT).open("rb") as output:
            output.seek(self._printed_from)
            lines = output.read().decode("utf-8", errors="replace").strip().splitlines()
        if not lines:
            return f"ended with exit code {code}, and nothing was printed"
        return lines[0] if code == REFUSED_CODE else f"ended with exit code {code}: {lines[-1]}"


class JobBar:
    """Runs jobs with a bar on standard error and their results on standard output.

    Args:
        bar: Of as many as there will be.
    """

    def __init__(self, bar: Bar) -> None:
        self._bar, self._looked_at = bar, 0.0
        self._interval = SECONDS_A_LOOK if is_terminal(sys.stderr) else SECONDS_A_LINE

    def run(self, jobs: Sequence[Job], *, at_once: int) -> dict[str, Outcome]:
        """Runs what is missing of them, as `run_jobs` does.

        Args:
            jobs: All of them.
            at_once: So many at a time.
        """
        there = sum(outcome(job.run_dir).state == "done" for job in jobs)
        self._bar.initial += there  # they say nothing of how long the others will take
        self._bar.update(there)
        return run_jobs(jobs, at_once=at_once, told=self._tell, watched=self._watch)

    def expect(self, total: int) -> None:
        """Set how many jobs there will be, once it is known."""
        self._bar.total = total
        self._bar.refresh()

    def say(self, lines: Sequence[str]) -> None:
        """Print lines above the bar."""
        with suppress(BrokenPipeError):  # nobody reads on, and the runs go on
            for line in lines:
                self._bar.write(line, file=sys.stdout)
            sys.stdout.flush()

    def _tell(self, job: Job, found: Outcome) -> None:
        self._bar.update()
        self.say([f"  {described(job, found)}"])

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
    """Return a line for people: the job, and what it came to."""
    if found.summary is None:
        goes_on = f"step {last_step(job.run_dir):,}" if found.state == "running" else "goes on when it is started again"
        return f"{found.state:<8} {job.name}  {found.error or goes_on}"
    loss = found.summary.get("val_loss_nats")
    nats = "no loss" if loss is None else f"{loss:.4f} nats"
    return f"{found.state:<8} {job.name}  {nats}, {found.summary.get('train_seconds', 0.0):.1f} s of training"


def last_step(run_dir: Path) -> int:
    """Return the last step that a run has logged; 0 where there is none."""
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


def curve_of(run_dir: Path) -> list[tuple[int, float]]:
    """Return step and loss of each evaluation on the fixed batches that a run has logged."""
    found = []
    try:
        lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
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


def _stop(processes: Sequence[Process], number: int | None) -> None:
    for process in processes:
        ask_to_stop(process.process, number)
    for process in processes:
        process.process.wait()

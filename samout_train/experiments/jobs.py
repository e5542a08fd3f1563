"""The jobs of many runs: report the state of each, and make the missing ones, each in a process of its own.

The run directories are the only state: `summary.json` shows that a job is done, the lock that a process runs it, and
`failure.json` why it failed. So there is nothing to repair after a crash. Several programs can make the same jobs, even
on several machines that share the folder, because each program reserves a job before starting it. The console shows a
bar over all jobs (`job_bar`) and a line for each (`described`).
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

from samout_train.checkpoint import CORRUPT, holds_run, is_reserved, is_taken, reserve, step_files
from samout_train.runtime import (
    CHILD_ENCODING,
    Bar,
    StopSignals,
    ask_to_stop,
    child_program,
    is_terminal,
    own_group,
    read_figures,
    share_of_cores,
    text_setting,
    wait_for_end,
    write_figures,
)

State = Literal["done", "running", "FAILED", "stopped", "waiting"]
Why = Literal["killed", "settings", "error"]
OUTPUT, FAILURE = "output.txt", "failure.json"
STOPPED_CODES, REFUSED_CODE = (130, 143), 2
LOOK_SECONDS = 0.1
CRASHED_ON_WINDOWS = 0xC0000000  # exit codes from here on are those of exceptions: NTSTATUS, ntstatus.h
LONGEST_LINE = 16_384  # bytes of metrics.jsonl that are read from its end
SECONDS_A_LOOK, SECONDS_A_LINE = 1.0, 60.0  # between updates of the steps, on a terminal and elsewhere


@dataclass(frozen=True)
class Job:
    """One training to make.

    Args:
        run_dir: Its directory, whose name is also the name of the job.
        words: The command line of `train`, without `run_dir` and `resume`.
        directory: The working directory for relative paths in its words; None for the one of this program.
    """

    run_dir: Path
    words: tuple[str, ...]
    directory: Path | None = None

    @property
    def name(self) -> str:
        """Return the name of the job."""
        return self.run_dir.name


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job.

    Args:
        state: `done`; `running`; `FAILED`; `stopped` by a signal, or killed together with the process that would have
            recorded it; or `waiting`.
        summary: The content of `summary.json` of a job that is done.
        error: The first line of the error of a job that failed.
        why: For a job that failed: `killed`; `settings` if the same settings would fail again; or `error`.
    """

    state: State
    summary: Mapping[str, Any] | None = None
    error: str | None = None
    why: Why | None = None

    @property
    def loss(self) -> float | None:
        """Return `final_loss` of the summary; None if there is none, or it is not a number."""
        return final_loss(self.summary or {})


def final_loss(summary: Mapping[str, Any]) -> float | None:
    """Return the loss on the whole validation split, in nats: of the averaged weights where the run has them."""
    key = "ema_val_loss_nats" if "ema_val_loss_nats" in summary else "val_loss_nats"
    value = summary.get(key)
    if value is None:
        return None
    return float(value)


def outcome(run_dir: Path) -> Outcome:
    """Return the outcome of the job in a directory; nothing is written."""
    summary = finished(run_dir)
    if summary is not None:
        return Outcome("done", summary)
    if is_taken(run_dir):
        return Outcome("running")
    try:
        failure = json.loads((run_dir / FAILURE).read_text(encoding="utf-8"))
        return Outcome("FAILED", error=str(failure["error"]), why=failure.get("why", "error"))
    except FileNotFoundError:
        if holds_run(run_dir):
            return Outcome("stopped")
        return Outcome("waiting")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Outcome("FAILED", error=f"{FAILURE} cannot be read ({error})", why="error")


def finished(run_dir: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run; None if it is not finished."""
    summary = read_figures(run_dir / "summary.json")
    if "weights_sha256" not in summary:
        return None
    return summary


def record_failure(run_dir: Path, error: str, why: Why = "error") -> None:
    """Record why a run failed in its directory, unless another process runs it by now.

    Args:
        run_dir: The run directory; it is made if missing.
        error: The message; its first line is kept.
        why: See `Outcome`.
    """
    if is_taken(run_dir):
        return
    first = "no reason was given"
    if error.strip():
        first = error.strip().splitlines()[0]
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_figures(run_dir / FAILURE, {"error": first, "why": why})
    except OSError:
        print(f"{run_dir}: the failure cannot be recorded", file=sys.stderr)


def has_checkpoint(run_dir: Path) -> bool:
    """Return whether a run has a checkpoint to resume from."""
    folder = run_dir / "checkpoints"
    return bool(step_files(folder) or step_files(folder, ".pt" + CORRUPT))


def forget_failure(run_dir: Path) -> None:
    """Remove the record of a failure when the run is tried again."""
    (run_dir / FAILURE).unlink(missing_ok=True)


def run_jobs(
    jobs: Sequence[Job],
    *,
    at_once: int,
    report: Callable[[Job, Outcome], None] = lambda job, outcome: None,
    watched: Callable[[Sequence[Job]], None] = lambda running: None,
) -> dict[str, Outcome]:
    """Run the missing jobs: finished ones are kept, stopped ones resume, failed ones are tried again.

    A job that another program has reserved, or whose process outlived a killed program, is left alone while the others
    are made here. At the end, this function waits for it, and makes it here if it was left unfinished.

    Args:
        jobs: All of them.
        at_once: Jobs at a time, which share the processor's threads.
        report: Called with each job that has ended, and its outcome.
        watched: Called repeatedly with the running jobs, including those of other programs.

    Returns:
        The outcome of each job, by name.

    Raises:
        StopRequestedError: on a signal; the running jobs have saved what they need to resume.
    """
    ledger = _Ledger(jobs, at_once, report)
    with StopSignals() as signals:
        try:
            while ledger.is_open:
                if signals.received is None:
                    ledger.start_missing()
                signals.check()
                watched(ledger.under_way)
                time.sleep(LOOK_SECONDS)
                ledger.look_here()
                ledger.look_elsewhere()
            signals.check()
        finally:
            ledger.stop(signals.received)
    return ledger.found


class _Ledger:
    """The jobs of `run_jobs`, with the same arguments: those missing, those that run here, and those elsewhere."""

    def __init__(self, jobs: Sequence[Job], at_once: int, report: Callable[[Job, Outcome], None]) -> None:
        self.found = {job.name: outcome(job.run_dir) for job in jobs}
        self._missing = [job for job in jobs if self.found[job.name].state != "done"]
        self._here: list[Process] = []
        self._elsewhere: list[Job] = []
        self._at_once = at_once
        self._report = report

    @property
    def is_open(self) -> bool:
        """Return whether any job has not ended."""
        return bool(self._missing or self._here or self._elsewhere)

    @property
    def under_way(self) -> list[Job]:
        """Return the running jobs, those here first."""
        return [*(process.job for process in self._here), *self._elsewhere]

    def start_missing(self) -> None:
        """Start missing jobs up to the limit of jobs at a time, except those that other programs have reserved."""
        while self._missing and len(self._here) < self._at_once:
            job = self._missing.pop(0)
            now = outcome(job.run_dir)
            failed_since = now.state == "FAILED" and self.found[job.name].state != "FAILED"
            if now.state == "done" or failed_since:  # another program has made it in the meantime
                self._end(job, now)
            elif (process := Process.start(job, self._at_once)) is None:
                self._elsewhere.append(job)
            else:
                self._here.append(process)

    def look_here(self) -> None:
        """Report the jobs that have ended here."""
        for process in list(self._here):
            became = process.became()
            if became is None:
                continue
            self._here.remove(process)
            if became.state == "running":  # another process runs it already
                self._elsewhere.append(process.job)
            else:
                self._end(process.job, became)

    def look_elsewhere(self) -> None:
        """Report the jobs that have ended elsewhere; jobs that a dead process left unfinished are missing again."""
        for job in list(self._elsewhere):
            if is_reserved(job.run_dir):
                continue
            became = outcome(job.run_dir)
            if became.state == "running":
                continue
            self._elsewhere.remove(job)
            if became.state in ("done", "FAILED"):
                self._end(job, became)
            else:
                self._missing.insert(0, job)

    def stop(self, number: int | None) -> None:
        """Stop the jobs that run here, with the signal that this program received, if any."""
        for process in self._here:
            ask_to_stop(process.process, number)
        for process in self._here:
            wait_for_end(process.process)
            process.release()

    def _end(self, job: Job, became: Outcome) -> None:
        self.found[job.name] = became
        self._report(job, became)


class Process:
    """A training in a process and a session of its own, so that Ctrl-C reaches it only once, through this program.

    Args:
        job: The job to run; it resumes where it was stopped.
        at_once: Number of jobs that share the processor's threads.
        release: Ends the reservation of its directory.
    """

    @classmethod
    def start(cls, job: Job, at_once: int) -> "Process | None":
        """Start a job; return None if another program has reserved or finished it, or another process runs it."""
        release = reserve(job.run_dir)
        if release is None:
            return None
        if is_taken(job.run_dir) or finished(job.run_dir) is not None:
            release()
            return None
        return cls(job, at_once, release)

    def __init__(self, job: Job, at_once: int, release: Callable[[], None] = lambda: None) -> None:
        self.job = job
        self.release = release
        job.run_dir.mkdir(parents=True, exist_ok=True)
        forget_failure(job.run_dir)
        words = [*job.words, text_setting("run_dir", job.run_dir.absolute())]
        # A job that begins from another run's checkpoint does so only at its first start.
        begins_elsewhere = any(word.startswith("resume=") for word in job.words) and not has_checkpoint(job.run_dir)
        if not begins_elsewhere:
            words.append("resume=auto")
        program = [*child_program(), "train", *words]
        with (job.run_dir / OUTPUT).open("ab") as output:
            self._printed_from = output.tell()
            self.process = subprocess.Popen(
                program,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | share_of_cores(at_once) | CHILD_ENCODING,
                cwd=job.directory,
                **own_group(),
            )

    def became(self) -> Outcome | None:
        """Return the outcome, or None while it runs; record a failure if the process died without recording one."""
        code = self.process.poll()
        if code is None:
            return None
        found = self._ended(code)
        self.release()
        return found

    def _ended(self, code: int) -> Outcome:
        found = outcome(self.job.run_dir)
        if found.state in ("done", "FAILED", "running") or code in STOPPED_CODES:
            return found
        why: Why = "error"
        if code < 0 or code >= CRASHED_ON_WINDOWS:
            why = "killed"
        elif code == REFUSED_CODE:
            why = "settings"
        record_failure(self.job.run_dir, self._reason(code), why)
        return outcome(self.job.run_dir)

    def _reason(self, code: int) -> str:
        if code < 0:
            return f"killed by signal {-code} ({signal.Signals(-code).name})"
        if code >= CRASHED_ON_WINDOWS:
            return f"killed by Windows ({code:#010x})"
        with (self.job.run_dir / OUTPUT).open("rb") as output:
            output.seek(self._printed_from)
            lines = output.read().decode("utf-8", errors="replace").strip().splitlines()
        if not lines:
            return f"ended with exit code {code}, and nothing was printed"
        if code == REFUSED_CODE:
            return lines[0]
        return f"ended with exit code {code}: {lines[-1]}"


class JobBar:
    """Runs jobs with a bar on standard error and their results on standard output.

    Args:
        bar: The bar over all jobs.
    """

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._looked_at = 0.0
        self._width = 0  # of the column of names
        self._interval = SECONDS_A_LINE
        if is_terminal(sys.stderr):
            self._interval = SECONDS_A_LOOK

    def run(self, jobs: Sequence[Job], *, at_once: int) -> dict[str, Outcome]:
        """Run the missing jobs, as `run_jobs` does.

        Args:
            jobs: All of them.
            at_once: Jobs at a time.
        """
        self._width = max((len(job.name) for job in jobs), default=0)
        there = sum(outcome(job.run_dir).state == "done" for job in jobs)
        self._bar.initial += there  # they must not count in the estimate of the time left
        self._bar.update(there)
        return run_jobs(jobs, at_once=at_once, report=self._tell, watched=self._watch)

    def expect(self, total: int) -> None:
        """Set the number of jobs, once it is known."""
        self._bar.total = total
        self._bar.refresh()

    def say(self, lines: Sequence[str]) -> None:
        """Print lines above the bar."""
        with suppress(BrokenPipeError):  # nobody reads standard output any more; the runs continue
            for line in lines:
                self._bar.write(line, file=sys.stdout)
            sys.stdout.flush()

    def _tell(self, job: Job, found: Outcome) -> None:
        self._bar.update()
        self.say([f"  {described(job, found, self._width)}"])

    def _watch(self, running: Sequence[Job]) -> None:
        if time.monotonic() - self._looked_at > self._interval:
            self._looked_at = time.monotonic()
            self._bar.set_postfix_str(", ".join(f"{job.name} step {last_step(job.run_dir):,}" for job in running))


@contextmanager
def job_bar(total: int) -> Iterator[JobBar]:
    """Yield a bar over this many jobs."""
    with Bar(desc="runs", total=total, unit="run", dynamic_ncols=True, smoothing=0) as bar:
        yield JobBar(bar)


def described(job: Job, found: Outcome, width: int = 0) -> str:
    """Return a line for the console: the state, the name and the result of a job.

    Args:
        job: The job.
        found: Its outcome.
        width: Width of the column of names; 0 for the width of this name.
    """
    head = f"{found.state:<8} {job.name:<{width}}"
    if found.error:
        return f"{head}  {found.error}"
    if found.state == "running":
        return f"{head}  step {last_step(job.run_dir):,}"
    if found.summary is None:
        return f"{head}  resumes when it is started again"
    nats = "no loss"
    if (loss := final_loss(found.summary)) is not None:
        nats = f"{loss:.4f} nats"
    return f"{head}  {nats}, {found.summary.get('train_seconds', 0.0):.1f} s of training"


def last_step(run_dir: Path) -> int:
    """Return the last step that a run has logged; 0 if there is none."""
    try:
        with (run_dir / "metrics.jsonl").open("rb") as file:
            file.seek(-min(LONGEST_LINE, file.seek(0, os.SEEK_END)), os.SEEK_END)
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):  # a line that is being written, or whose beginning was not read
            continue
    return 0


def curve_of(run_dir: Path) -> list[tuple[int, float]]:
    """Return step and loss in nats, as in `final_loss`, of each logged evaluation on the fixed batches."""
    found = []
    try:
        lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            logged = json.loads(line)
            key = "val/ema_loss_nats" if "val/ema_loss_nats" in logged else "val/loss_nats"
            if logged.get(key) is not None:
                found.append((int(logged["step"]), float(logged[key])))
        except (ValueError, KeyError, TypeError, AttributeError):  # cut short when the process died
            continue
    return found

"""Stops: signals at random moments, and continuing after any step, on another number of threads, too."""

import os
import random
import signal

from samout_train.checkpoint import saved_steps
from samout_train.experiments import digests
from tests.faults.processes import QUICK, finished, start, until_it_trains
from tests.faults.row import Case, Row
from tests.support.signal_after import signal_after

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGUSR2: 143}
STEPS = 12


def signals(case: Case) -> str:
    """Sends signals at random moments, and continues, until each run is through."""
    draw = random.Random(case.seed)
    words = (*case.run, *QUICK, f"trainer.max_steps={STEPS}")
    finished(*words, f"run_dir={case.folder / 'alone'}")
    wanted, sent, compared = digests(case.folder / "alone"), 0, 0
    while sent < case.count:
        folder = case.folder / f"stopped_{compared}"
        while True:
            process = start(folder, *words)
            if sent < case.count:
                until_it_trains(process, folder)
                process.join(draw.uniform(0, 0.2))
            else:
                process.join(120)
            if process.exitcode is not None:
                break
            number = draw.choice(list(CODES))
            os.kill(process.pid or 0, number)
            process.join(60)
            printed = (folder / "out.txt").read_text()
            if process.exitcode == 0:
                break
            if process.exitcode == -number and saved_steps(folder / "checkpoints")[-1:] == [STEPS]:
                continue  # it was on its way out, with everything saved
            assert process.exitcode == CODES[number], f"{number.name}: {process.exitcode} {printed[-1500:]}"
            sent += 1
        assert process.exitcode == 0, f"exit code {process.exitcode}: {(folder / 'out.txt').read_text()[-1500:]}"
        found = digests(folder)
        assert found == wanted, [what for what in wanted if found[what] != wanted[what]]
        compared += 1
    return f"{sent} signals of four kinds, each saved and answered with 130 or 143; {compared} runs bitwise equal"


def continuing(case: Case) -> str:
    """Stops after step k of 22 and continues, for k from 1 on: dropout, three micro-steps, across epochs."""
    words = [word for word in (*case.run, *QUICK) if not word.startswith("data.batch_size")]
    words += ["data.batch_size=3", "trainer.accumulate=3", "schedule=cosine", "optimizer=adamw", "trainer.max_steps=22"]
    finished(*words, f"run_dir={case.folder / 'whole'}")
    wanted = digests(case.folder / "whole")
    for k in range(1, case.count + 1):
        folder = case.folder / f"after_{k}"
        finished(*words, f"run_dir={folder}", signal_after(k), code=143)
        finished(*words, f"run_dir={folder}", "resume=auto")
        assert digests(folder) == wanted, f"after step {k}"
    return f"{case.count} of {case.count} bitwise equal, logged losses identical"


def other_threads(case: Case) -> str:
    """Continues on another number of threads."""
    words = (*case.run, *QUICK, f"run_dir={case.folder / 'run'}", "resume=auto")
    finished(*words, "trainer.max_steps=2", threads=1)
    printed = finished(*words, "trainer.max_steps=4", threads=2)
    told = [line for line in printed.splitlines() if "the last bits of what follows will differ" in line]
    assert len(told) == 1 and "threads 1, now 2" in told[0], printed[-1500:]
    assert "will differ" not in finished(*words, "trainer.max_steps=6", threads=2)
    return "continued with one warning that names the difference"


ROWS = [
    Row(10, "SIGTERM, SIGINT, SIGUSR1, SIGUSR2", 3, 100, signals),
    Row(11, "continuing in general", 1, 20, continuing),
    Row(13, "other threads, torch, device", 1, 1, other_threads),
]

"""A disk that is full for a while, while saving and while logging. A limit on the size of files stands for it."""

import re
import resource

from samout_train.checkpoint import newest_checkpoint
from samout_train.experiments import digests
from samout_train.training import Callback
from tests.faults.processes import QUICK, finished
from tests.faults.row import Case, Row


class FullDisk(Callback):
    """From one step to before another, no file grows beyond a size."""

    def __init__(self, *, first: int, last: int, size: int) -> None:
        self.first, self.last, self.size = first, last, size
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_step(self, step: int) -> None:
        """Sets the limit, or lifts it."""
        limit = self.size if self.first <= step <= self.last else self._before[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, self._before[1]))


def _full(first: int, last: int, size: int) -> str:
    target = f"{__name__}.FullDisk"
    return f"+callbacks.full_disk={{_target_: {target}, first: {first}, last: {last}, size: {size}}}"


def while_saving(case: Case) -> str:
    """No checkpoint can be written for many steps, and then again; and at last to the end."""
    steps = case.count + 4
    words = (*case.run, *QUICK, f"trainer.max_steps={steps}")
    alone, full, to_the_end = (case.folder / name for name in ("alone", "full", "to_the_end"))
    finished(*words, f"run_dir={alone}")
    printed = finished(*words, f"run_dir={full}", _full(3, case.count + 2, 30_000))
    told = [line for line in printed.splitlines() if "could not be written" in line]
    # A save is written beside the next step, so that the limit may come a step early and be lifted a step early.
    assert abs(len(told) - case.count) <= 1, f"{len(told)} of {case.count}: {printed[-1500:]}"
    assert all(
        re.search(r"needs [\d,]+ bytes, [\d,]+ are free; the checkpoint of step [12] is kept", line) for line in told
    )
    assert digests(full) == digests(alone)
    words = (*case.run, *QUICK, f"trainer.max_steps={steps}", f"run_dir={to_the_end}")
    printed = finished(*words, _full(3, steps, 30_000), code=1)
    newest = newest_checkpoint(to_the_end, set_aside=False)
    assert newest is not None and newest.name in ("step_00000001.pt", "step_00000002.pt") and "Traceback" not in printed
    left = [*full.rglob("*.tmp"), *to_the_end.rglob("*.tmp")]
    assert not left, left
    reported = f"{len(told)} of {len(told)} reported with bytes needed and free, bitwise equal to an undisturbed run"
    return f"{reported}; full to the end: code 1"


def while_logging(case: Case) -> str:
    """Neither metrics nor events nor the log can be written for many steps."""
    steps = case.count + 4
    settings = ("checkpoint.every_n_steps=null", "checkpoint.keep_best=false", "callbacks=default")
    words = (*case.run, *QUICK, *settings, f"trainer.max_steps={steps}")
    alone, full = case.folder / "alone", case.folder / "full"
    finished(*words, f"run_dir={alone}")
    printed = finished(*words, f"run_dir={full}", _full(2, case.count + 1, 300))
    assert printed.count("metrics.jsonl cannot be written") == 1, printed[-1500:]
    assert printed.count("TensorBoard's events cannot be written") == 1 and "Traceback" not in printed, printed[-1500:]
    wanted, found = digests(alone), digests(full)
    assert (found["weights"], found["optimizer"]) == (wanted["weights"], wanted["optimizer"])
    lines = (full / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == steps - case.count, "what came before and after is there, and no half line"
    reported = f"{case.count} steps without a log, each file reported once"
    return f"{reported}, weights and optimizer equal to an undisturbed run"


ROWS = [
    Row(8, "disk full while saving", 4, 20, while_saving),
    Row(9, "disk full while logging", 4, 20, while_logging),
]

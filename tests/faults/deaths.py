"""Deaths: kill -9 at random moments and between any two steps of a save, what they leave, and two runs at once."""

import os
import random
import shutil
import sys
import time
from pathlib import Path

import torch

from samout_train.checkpoint import Checkpoints, damage, newest_checkpoint, read_checkpoint
from samout_train.experiments import digests
from tests.faults.processes import QUICK, finished, start, until_it_trains
from tests.faults.row import Case, Row
from tests.support.program import context

STEPS = 12


def kills(case: Case) -> str:
    """Kills runs at random moments, until each is through; compares every one that is with one that was left alone."""
    draw, words = random.Random(case.seed), (*case.run, *QUICK, f"trainer.max_steps={STEPS}")
    finished(*words, f"run_dir={case.folder / 'alone'}")
    wanted, made, compared, lost = digests(case.folder / "alone"), 0, 0, 0
    while made < case.count:
        folder, best = case.folder / f"killed_{compared}", -1
        while True:
            process = start(folder, *words)
            if made < case.count:
                until_it_trains(process, folder)
                process.join(draw.uniform(0, 0.4))
            else:
                process.join(120)
            if process.exitcode is not None:
                assert process.exitcode == 0, (folder / "out.txt").read_text()[-2000:]
                break
            process.kill()
            process.join()
            made += 1
            newest = newest_checkpoint(folder, set_aside=False) if (folder / "checkpoints").exists() else None
            step = -1 if newest is None else int(newest.stem[5:])
            lost += step < best
            best = max(best, step)
        assert digests(folder) == wanted, f"{folder.name} came to other bits"
        compared += 1
        shutil.rmtree(folder)
    assert not lost, f"{lost} checkpoints were lost"
    return f"{made} kills, 0 checkpoints lost, {compared} finished runs equal in sha256"


def every_step_of_a_save(case: Case) -> str:
    """Dies at the k-th thing that a save asks of the system, for every k."""
    weights = {"weight": torch.arange(50_000, dtype=torch.float32)}
    before = _saver(case.folder / "before")
    before.save(weights, step=1, best_step=None)
    before.finish(1, None)
    k = 0
    while True:
        k += 1
        folder = case.folder / "now"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(case.folder / "before", folder)
        process = context.Process(target=_save_and_die, args=(str(folder), k))
        process.start()
        process.join(60)
        newest = newest_checkpoint(folder, set_aside=False)
        assert newest is not None and damage(newest) is None, f"none is left after a death at {k}"
        step = int(newest.stem[5:])
        assert step in (1, 2) and torch.equal(read_checkpoint(newest)["weight"], weights["weight"] + step - 1)
        if process.exitcode == 0:
            assert step == 2
            return f"{k - 1} of {k - 1} deaths left the old or the new one"
        assert process.exitcode == 9


def _saver(folder: Path) -> Checkpoints:
    return Checkpoints(
        directory=folder / "checkpoints", every_n_steps=1, every_n_seconds=None, keep_last=1, keep_best=True, about={}
    )


def _save_and_die(folder: str, k: int) -> None:
    count, fsync = 0, os.fsync

    def tick() -> None:
        nonlocal count
        count += 1
        if count == k:
            os._exit(9)

    def ticking_fsync(descriptor: int) -> None:
        tick()
        fsync(descriptor)
        tick()

    os.fsync = ticking_fsync
    saver = _saver(Path(folder))
    watched = ("open", "os.rename", "os.remove", "os.mkdir")
    sys.addaudithook(lambda event, arguments: tick() if event in watched and folder in str(arguments[0]) else None)
    saver.save({"weight": torch.arange(50_000, dtype=torch.float32) + 1}, step=2, best_step=None)
    saver.finish(2, None)
    os._exit(0)


def leftovers(case: Case) -> str:
    """Temporary files of runs that died lie in a run directory when it is continued."""
    words = (*case.run, *QUICK, f"run_dir={case.folder / 'run'}", "resume=auto")
    finished(*words, "trainer.max_steps=2")
    for number in range(case.count):
        name = ("checkpoints/step_00000009.pt", "checkpoints/index.json", "metrics.jsonl", "summary.json")[number % 4]
        (case.folder / "run" / f"{name}.{1000 + number}.tmp").write_bytes(b"half")
    finished(*words, "trainer.max_steps=4")
    left = list((case.folder / "run").rglob("*.tmp"))
    assert not left, left
    return f"{case.count} leftovers, 0 left, none taken for a checkpoint"


def at_each_instant(case: Case) -> str:
    """Watches the checkpoints of a run that keeps one: there is always one that is whole."""
    run_dir = case.folder / "run"
    steps = 4 * case.count
    one = ("checkpoint.keep_last=1", "checkpoint.keep_best=false")
    process = start(run_dir, *case.run, *QUICK, *one, f"trainer.max_steps={steps}")
    looked, seen = 0, False
    while process.exitcode is None:
        folder = run_dir / "checkpoints"
        while True:
            names = sorted(path.name for path in folder.glob("step_*"))
            try:
                whole = any(damage(folder / name) is None for name in names if name.endswith(".pt"))
            except FileNotFoundError:  # deleted while it was looked at
                continue
            if whole or names == sorted(path.name for path in folder.glob("step_*")):
                break
        assert whole or not seen, f"none of {names} is whole"
        seen, looked = seen or whole, looked + seen
        process.join(0.001)
    assert process.exitcode == 0 and looked, (run_dir / "out.txt").read_text()[-2000:]
    return f"checked {looked} times during {steps} saves: always at least one whole"


def two_at_once(case: Case) -> str:
    """Starts a second run in the directory of one that runs."""
    run_dir, slowest = case.folder / "run", 0.0
    words = (*case.run, *QUICK, f"run_dir={run_dir}", "resume=auto")
    first = start(run_dir, *case.run, *QUICK, "trainer.max_steps=1000000")
    until_it_trains(first, run_dir)
    for _ in range(case.count):
        started = time.monotonic()
        printed = finished(*words, "trainer.max_steps=1000000", code=2)
        slowest = max(slowest, time.monotonic() - started)
        assert "another process is at a run in it" in printed
    assert first.exitcode is None and slowest < 5, f"{slowest:.1f} s"
    first.kill()
    first.join()
    finished(*words, "trainer.max_steps=1")  # it has made more, and only ends
    return f"{case.count} refused, the slowest in {slowest:.1f} s; free again after kill -9"


ROWS = [
    Row(1, "kill -9 at any time", 3, 200, kills),
    Row(2, "death between any two system calls of a save", 1, 1, every_step_of_a_save),
    Row(3, "temporary files left behind", 8, 50, leftovers),
    Row(7, "keep the last and the best", 5, 50, at_each_instant),
    Row(21, "two runs in one directory", 1, 20, two_at_once),
]

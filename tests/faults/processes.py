"""Runs in processes of their own, which can be killed, forked from one that has already imported everything."""

import os
import sys
import time
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from samout_train.config import Composed, compose_config
from tests.support.program import context

# A step takes a few milliseconds, and each is saved.
QUICK = (
    *("data.seq_len=9", "data.num_sequences=8", "data.batch_size=4", "model.dropout=0.1", "checkpoint.every_n_steps=1"),
    *("trainer.eval_every_n_steps=5", "callbacks=metrics_file", "kernels=reference"),
)


def start(run_dir: Path, *overrides: str) -> BaseProcess:
    """Begins a run, or goes on with it; what was typed is composed once only, so that hundreds can be begun.

    Args:
        run_dir: Where it lies; what it prints goes to `out.txt` there.
        overrides: As on the command line, without run_dir and resume.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_go_on, args=(_composed(overrides), run_dir), name=str(_metrics_file(run_dir)))
    process.start()
    return process


def until_it_trains(process: BaseProcess, run_dir: Path) -> None:
    """Waits until a process that `start` gave is about to make its first step, or has ended."""
    while process.exitcode is None and str(_metrics_file(run_dir)) == process.name:
        time.sleep(0.005)


def _metrics_file(run_dir: Path) -> int | None:
    """Which file holds the metrics: each process begins a new one, with what counts of the one before."""
    path = run_dir / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else None


@cache
def _composed(overrides: tuple[str, ...]) -> Composed:
    return compose_config([*overrides, "resume=auto", "run_dir=absent"])


def _go_on(composed: Composed, run_dir: Path) -> None:
    _prints_to(os.open(run_dir / "out.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    import torch

    from samout_train.checkpoint import Claim
    from samout_train.runtime import StopRequestedError
    from samout_train.training import prepare

    torch.set_num_threads(1)
    composed.config["run_dir"] = str(run_dir)
    claim = Claim(composed, run_dir)
    try:
        with claim.held({}):
            prepare(claim, [])()
    except StopRequestedError as stop:
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:  # on its way out; the program answers so, too
        sys.exit(130)


def finished(*overrides: str, code: int = 0, threads: int = 1) -> str:
    """Runs it to its end, which must have this exit code; returns what it printed."""
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(writer, overrides, threads))
    process.start()
    writer.close()
    with os.fdopen(os.dup(reader.fileno()), encoding="utf-8", errors="replace") as pipe:
        printed = pipe.read()  # until the process ends
    process.join(120)
    assert process.exitcode == code, f"exit code {process.exitcode}, wanted {code}: {printed[-2000:]}"
    return printed


def _run(printed: Connection, overrides: tuple[str, ...], threads: int) -> None:
    _prints_to(printed.fileno())
    import torch

    torch.set_num_threads(threads)
    sys.argv = ["samout_train", *overrides]
    from samout_train.cli.train import train as main

    sys.exit(main(list(overrides)))


def _prints_to(descriptor: int) -> None:
    for number in (1, 2):
        os.dup2(descriptor, number)

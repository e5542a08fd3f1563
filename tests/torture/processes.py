"""Runs in processes of their own, which can be killed, forked from one that has already imported everything."""

import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from program import context

# A step takes a few milliseconds, and each is saved.
QUICK = (
    *("data.seq_len=9", "data.num_sequences=8", "data.batch_size=4", "model.dropout=0.1", "checkpoint.every_n_steps=1"),
    *("trainer.eval_every_n_steps=5", "callbacks=metrics_file"),
)


def start(folder: Path, *overrides: str, threads: int = 1) -> BaseProcess:
    """Begins what `python -m samout_train train` does with these overrides.

    Args:
        folder: Where what it prints goes to, as `out.txt`.
        overrides: As on the command line.
        threads: Of torch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_run, args=(str(folder / "out.txt"), overrides, threads))
    process.start()
    return process


def finished(folder: Path, *overrides: str, code: int = 0, threads: int = 1) -> str:
    """Runs it to its end, which must have this exit code; returns what it printed."""
    process = start(folder, *overrides, threads=threads)
    process.join(120)
    printed = (folder / "out.txt").read_text(errors="replace")
    assert process.exitcode == code, f"exit code {process.exitcode}, wanted {code}: {printed[-2000:]}"
    return printed


def _run(printed: str, overrides: tuple[str, ...], threads: int) -> None:
    for number in (1, 2):
        os.dup2(os.open(printed, os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if number == 1 else os.O_APPEND)), number)
    import torch

    torch.set_num_threads(threads)
    sys.argv = ["samout_train", *overrides]
    from samout_train.commands.train import main

    sys.exit(main(list(overrides)))

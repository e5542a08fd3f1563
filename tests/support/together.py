"""Several processes of one run, started as torchrun starts them but forked from one that has imported torch already."""

import faulthandler
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import torch

from tests.support.program import context

SECONDS = 40


def together(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function of this file or another module returns in each of several processes that are joined.

    Args:
        count: How many.
        function: Called as `function(*arguments)`; returns what torch.save takes.
        arguments: For each the same.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_call, args=(environment, folder, function, arguments))
            for environment in environments(count)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(SECONDS)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        told = [path.read_text() for path in sorted(Path(folder).glob("*.err"))]
        assert codes == [0] * count, (codes, *told)
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(count)]


def environments(count: int) -> list[dict[str, str]]:
    """What torchrun sets for each process on one machine, but for its store."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    same = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return [os.environ | same | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def samout_together(folder: Path, count: int, *words: str) -> list[CompletedProcess[str]]:
    """What `torchrun --nproc-per-node COUNT -m samout_train *words` does in a folder, by process."""
    return together(count, _program, folder, words)


def _call(environment: Mapping[str, str], folder: str, function: Callable[..., Any], arguments: Any) -> None:
    os.environ.clear()  # what the fork server was started with
    os.environ.update(environment)
    rank = environment["RANK"]
    with Path(folder, f"{rank}.err").open("w") as errors:
        os.dup2(errors.fileno(), 2)
        torch.set_num_threads(1)
        faulthandler.dump_traceback_later(SECONDS - 10, file=errors)
        torch.save(function(*arguments), Path(folder, f"{rank}.pt"))


def _program(folder: Path, words: tuple[str, ...]) -> CompletedProcess[str]:
    from samout_train.cli.main import main

    os.chdir(folder)
    sys.argv = ["samout_train", *words]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        kept = [os.dup(number) for number in (1, 2)]
        os.dup2(out.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        for number, before in enumerate(kept, start=1):
            os.dup2(before, number)
        texts = []
        for stream in (out, errors):
            stream.seek(0)
            texts.append(stream.read())
    return CompletedProcess(words, int(code or 0), *texts)

"""The program in processes of its own, forked from one that has already imported what each of them would import."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        *("numba", "torch._dynamo", "torch.utils.tensorboard", "matplotlib.figure", "hydra._internal.hydra"),
        *("samout_train.cli.train", "samout_train.training.run", "samout_train.training.callbacks.tensorboard"),
    ]
)


def samout(
    folder: Path,
    *words: str | bytes,
    text: str = "",
    timeout: float = 120,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """What `python -m samout_train *words` does in a folder, with `text` as standard input.

    Args:
        folder: The working directory.
        words: As they are typed.
        text: Standard input.
        timeout: Seconds after which the process is killed and the test ends.
        environment: Variables of this process alone; the fork server, which others use too, never sees them.
    """
    with tempfile.TemporaryDirectory() as streams:
        Path(streams, "0").write_text(text, "utf-8", errors="surrogateescape")
        arguments = ([os.fsdecode(word) for word in words], folder, streams, os.environ | dict(environment or {}))
        process = context.Process(target=_main, args=arguments)
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired([str(word) for word in words], timeout)
        out, err = (Path(streams, name).read_text("utf-8", errors="surrogateescape") for name in "12")
    return subprocess.CompletedProcess(words, process.exitcode or 0, out, err)


def _main(words: Sequence[str], folder: Path, streams: str, environment: dict[str, str]) -> None:
    for number, flags in enumerate((os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)):
        os.dup2(os.open(f"{streams}/{number}", flags), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["samout_train", *words]
    from samout_train.cli.main import main

    with os.fdopen(0, encoding="utf-8") as sys.stdin:
        main()

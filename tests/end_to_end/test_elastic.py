"""What torchrun does when a process dies, and what a run does when torchrun is told to stop."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.models.test_parallel import summary_of
from tests.support.together import samout_together

STEPS = 400
WORDS = [
    *("model=v8", "model.hidden_size=24", "model.num_layers=2", "model.num_heads=4", "data=random", "device=cpu"),
    *("data.batch_size=8", "checkpoint.every_n_steps=5", f"trainer.max_steps={STEPS}"),
]
SECONDS = 60
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="a process is found by its environment"),
]


@contextmanager
def torchrun(folder: Path, *words: str, restarts: int = 0) -> Iterator["subprocess.Popen[str]"]:
    """Two processes of one run, in `folder / "run"`."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--max-restarts={restarts}"]
    command = [*launcher, "-m", "samout_train", *words, f"run_dir={folder / 'run'}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(SECONDS)


def process_of(folder: Path, rank: int, other_than: int = 0) -> int:
    """The number of the process of this rank, once it is there."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words, environment = (Path(path, name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
            except OSError:
                continue
            is_it = f"run_dir={folder / 'run'}".encode() in words and f"RANK={rank}".encode() in environment
            if is_it and int(path.name) != other_than:
                return int(path.name)
        time.sleep(0.01)
    raise AssertionError(f"no process {rank}: {(folder / 'log').read_text()}")


def newest_step(folder: Path) -> int:
    return max((int(path.stem[5:]) for path in folder.glob("run/checkpoints/step_*.json")), default=0)


def wait_for_a_checkpoint_after(step: int, folder: Path, process: "subprocess.Popen[str]") -> int:
    deadline = time.monotonic() + SECONDS
    while newest_step(folder) <= step:
        assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.01)
    return newest_step(folder)


def weights_of_an_undisturbed_run(folder: Path, *words: str) -> str:
    done = samout_together(folder, 2, *words, f"run_dir={folder / 'undisturbed'}")
    assert [process.returncode for process in done] == [0, 0], done[0].stderr
    return str(summary_of(folder / "undisturbed")["weights_sha256"])


@pytest.mark.parametrize(("parallel", "ranks"), [("ddp", (1, 1, 0, 1, 1)), ("fsdp", (1, 0))])
def test_a_run_outlives_kills_of_its_processes(parallel: str, ranks: tuple[int, ...], tmp_path: Path) -> None:
    words = [*WORDS, f"trainer.parallel={parallel}"]
    moments, step = random.Random(0), 0
    with torchrun(tmp_path, *words, restarts=len(ranks)) as process:
        for rank in ranks:
            step = wait_for_a_checkpoint_after(step, tmp_path, process)
            time.sleep(moments.uniform(0, 0.2))
            number = process_of(tmp_path, rank)
            os.kill(number, signal.SIGKILL)
            process_of(tmp_path, rank, other_than=number)
            step = newest_step(tmp_path)
        assert process.wait(SECONDS) == 0, (tmp_path / "log").read_text()
    summary = summary_of(tmp_path / "run")
    assert summary["steps"] == STEPS
    assert summary["weights_sha256"] == weights_of_an_undisturbed_run(tmp_path, *words)


def test_what_torchrun_is_told_stops_all_where_they_can_go_on(tmp_path: Path) -> None:
    moments, step = random.Random(1), 0
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        with torchrun(tmp_path, *WORDS, "resume=auto") as process:
            step = wait_for_a_checkpoint_after(step, tmp_path, process)
            time.sleep(moments.uniform(0, 0.2))
            process.send_signal(number)
            process.wait(SECONDS)
        told = (tmp_path / "log").read_text()
        assert f"stopped by {number.name}; the checkpoint is written" in told, told
        assert newest_step(tmp_path) >= step
        step = newest_step(tmp_path)
    with torchrun(tmp_path, *WORDS, "resume=auto") as process:
        assert process.wait(SECONDS) == 0, (tmp_path / "log").read_text()
    assert summary_of(tmp_path / "run")["weights_sha256"] == weights_of_an_undisturbed_run(tmp_path, *WORDS)

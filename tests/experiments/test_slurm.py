"""The files for SLURM on one machine: each node is an agent of torchrun, and SLURM's commands are stand-ins."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.end_to_end.test_elastic import (
    newest_step,
    process_of,
    wait_for_a_checkpoint_after,
    weights_of_an_undisturbed_run,
)
from tests.models.test_parallel import summary_of

FILES = Path(__file__).parents[2] / "scripts" / "slurm"
SMALL = ["model.hidden_size=24", "model.num_layers=2", "model.num_heads=4", "data=random", "device=cpu"]
WORDS = ["model=v8", *SMALL, "data.batch_size=8", "checkpoint.every_n_steps=20", "trainer.max_steps=400"]
SECONDS = 120
COMMANDS = {
    # Starts a task on each node, each in a session of its own, and ends with the worst of their codes.
    "srun": """
        while [[ $1 == --* ]]; do shift; done
        for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do SLURM_NODEID=$node setsid "$@" & tasks+=($!); done
        for task in "${tasks[@]}"; do wait "$task" || code=$?; done
        exit "${code:-0}"
    """,
    "scontrol": """
        if [[ $1 == show ]]; then echo localhost; echo localhost; else echo "$@" >> "$SLURM_SAID"; fi
    """,
}
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found by their environment"),
]


@contextmanager
def job(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """The training file as a job of two nodes with one process each, in `folder / "run"`."""
    commands = folder / "commands"
    commands.mkdir(exist_ok=True)
    for name, lines in COMMANDS.items():
        (commands / name).write_text(f"#!/bin/bash\n{lines}")
        (commands / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[1-2]"}
    own = {"PATH": f"{commands}:{os.environ['PATH']}", "PYTHON": sys.executable, "PROCESSES_PER_NODE": "1"}
    environment = {**os.environ, **slurm, **own, "SLURM_SAID": str(folder / "said")}
    command = ["bash", str(FILES / "train.sbatch"), str(folder / "run"), *WORDS]
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment)
        try:
            yield process
        finally:
            process.wait(SECONDS)


def signal_step(number: signal.Signals, *, tasks_only: bool) -> None:
    """To the tasks of the step, the agents, as SLURM does it by itself, or to what they started, too."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = (Path(path, name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:
            continue
        in_step = any(word.startswith(b"SLURM_NODEID=") for word in environment)
        is_meant = b"torch.distributed.run" in words or (b"samout_train" in words and not tasks_only)
        if in_step and is_meant and f"SLURM_JOB_ID={os.getpid()}".encode() in environment:
            os.kill(int(path.name), number)


@pytest.mark.parametrize("name", ["train.sbatch", "sweep.sh"])
@pytest.mark.parametrize("command", [["bash", "-n"], ["shellcheck"]], ids=lambda command: command[0])
def test_what_reads_shell_finds_nothing(command: list[str], name: str) -> None:
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not there")
    found = subprocess.run([*command, FILES / name], capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_two_nodes_make_one_run_that_goes_on_after_signals_and_a_kill(tmp_path: Path) -> None:
    step = 0
    for tasks_only in (False, True):
        with job(tmp_path) as process:
            step = wait_for_a_checkpoint_after(step, tmp_path, process)
            signal_step(signal.SIGTERM, tasks_only=tasks_only)
            assert process.wait(SECONDS) != 0
        told = (tmp_path / "log").read_text()
        assert "stopped by SIGTERM; the checkpoint is written" in told, told
        step = newest_step(tmp_path)
    assert (tmp_path / "said").read_text() == f"requeue {os.getpid()}\n" * 2
    with job(tmp_path) as process:
        wait_for_a_checkpoint_after(step, tmp_path, process)
        os.kill(process_of(tmp_path, 1), signal.SIGKILL)  # both agents start their processes again
        assert process.wait(SECONDS) == 0, (tmp_path / "log").read_text()
    summary = summary_of(tmp_path / "run")
    assert (summary["processes"], summary["steps"]) == (2, 400)
    assert summary["weights_sha256"] == weights_of_an_undisturbed_run(tmp_path, *WORDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["commands", "log", "run", "said", "undisturbed"]


def test_a_job_that_gets_nowhere_is_not_queued_again(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("no directory")
    with job(tmp_path) as process:
        assert process.wait(SECONDS) != 0
    assert not (tmp_path / "said").exists()


def test_what_is_typed_for_a_sweep_has_the_last_word(tmp_path: Path) -> None:
    typed = ["seed=1,2", "hydra.launcher.gpus_per_node=4"]
    command = ["bash", str(FILES / "sweep.sh"), str(tmp_path), *typed]
    said = subprocess.run(command, env=os.environ | {"PYTHON": "echo"}, capture_output=True, text=True, check=True)
    assert "hydra/launcher=submitit_slurm" in said.stdout and said.stdout.split()[-2:] == typed


def test_the_sweep_makes_each_job_with_another_launcher_too(tmp_path: Path) -> None:
    command = ["bash", str(FILES / "sweep.sh"), str(tmp_path / "sweep"), "model=v8,gru", "seed=1,2"]
    small = ["model.hidden_size=24", "model.num_layers=1", "data=random", "data.batch_size=8", "trainer.max_steps=2"]
    environment = {**os.environ, "PYTHON": sys.executable, "LAUNCHER": "submitit_local"}
    done = subprocess.run(
        [*command, *small, "device=cpu", "hydra.sweeper.max_batch_size=2"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "sweep").glob("*/summary.json"))) == 4

"""Prove that a run that is killed and resumed equals an undisturbed run, bit for bit."""

import hashlib
import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samout_train.checkpoint import find_checkpoint, named_values, read_checkpoint, weights_sha256
from samout_train.runtime import CHILD_ENCODING, StopSignals, child_program, own_group, text_setting

# Makes CUDA compute the same bits twice, as a CPU does anyway.
DETERMINISTIC = (
    "from samout_train.runtime.threads import wait_shortly; wait_shortly(); "
    "import torch; torch.use_deterministic_algorithms(True); "
)
OF_THE_MACHINE = ("time/", "memory/")  # tags of figures that differ between equal runs
PATIENCE_SECONDS = 600.0


class TrainingFailedError(Exception):
    """Report a training that ended with an error of its own."""


def digests(run_dir: Path) -> dict[str, str]:
    """Return the sha256 of a run's weights, their average, its optimizer's state, and its log without times and memory.

    Args:
        run_dir: A run directory that has a checkpoint and metrics.jsonl.
    """
    content = read_checkpoint(find_checkpoint(run_dir))
    logged = []
    for text in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        logged.append({tag: value for tag, value in line.items() if not tag.startswith(OF_THE_MACHINE)})
    average = {}
    if "ema" in content:
        average["ema"] = weights_sha256(content["ema"]["weights"])
    return average | {
        "weights": weights_sha256(content["model"]),
        "optimizer": weights_sha256(_optimizer_tensors(content["optimizer"])),
        "metrics": hashlib.sha256(json.dumps(logged).encode()).hexdigest(),
    }


def _optimizer_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors and numbers, such as learning rates, of an optimizer's state by name."""
    tensors = {}
    for name, value in named_values(state, "optimizer"):
        if isinstance(value, int | float):
            value = torch.tensor(value, dtype=torch.float64)
        if isinstance(value, Tensor):
            tensors[name] = value
    return tensors


def run_killed(
    words: list[str],
    run_dir: Path,
    *,
    kills: int,
    seed: int,
    device: torch.device,
    report: Callable[[str], None],
    signals: StopSignals,
) -> None:
    """Run a training that is killed at random moments and resumed after each kill.

    Args:
        words: The command line of the training, without run_dir and resume.
        run_dir: Its directory.
        kills: Number of kills; with 0 the training is not disturbed.
        seed: Seed of the random moments.
        device: Device of the training; on CUDA, torch is set to deterministic algorithms.
        report: Called with a line for each kill.
        signals: Checked while waiting; on a signal the process is killed, too.

    Raises:
        StopRequestedError: on a signal.
        TrainingFailedError: if the training fails by itself; the message has its last lines.
    """
    draw = random.Random(seed)
    for number in range(kills):
        with _started([*words, text_setting("run_dir", run_dir), "resume=auto"], run_dir, device) as process:
            before, started = _steps(run_dir), time.monotonic()
            while _steps(run_dir) <= before and process.poll() is None:
                if time.monotonic() - started > PATIENCE_SECONDS:
                    break
                signals.check()
                time.sleep(0.01)
            step_seconds = _step_seconds(run_dir)
            time.sleep(draw.uniform(0, 2 * step_seconds))
            signals.check()
            if process.poll() is not None:
                _require_success(process, run_dir)
                report(f"  kill {number + 1}: the run had ended; further kills are left out")
                return
        report(f"  kill {number + 1}: after step {_steps(run_dir):,}")
    with _started([*words, text_setting("run_dir", run_dir), "resume=auto"], run_dir, device) as process:
        while process.poll() is None:
            signals.check()
            time.sleep(0.01)
        _require_success(process, run_dir)


@contextmanager
def _started(words: list[str], run_dir: Path, device: torch.device) -> "Iterator[subprocess.Popen[bytes]]":
    """Yield a training in a session of its own, which signals of the terminal do not reach; kill it at the end."""
    first = ""
    if device.type == "cuda":
        first = DETERMINISTIC
    program = child_program(first)
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} | CHILD_ENCODING
    with run_dir.with_suffix(".txt").open("wb") as printed:
        process = subprocess.Popen(
            [*program, "train", *words],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env=environment,
            **own_group(),
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _require_success(process: "subprocess.Popen[bytes]", run_dir: Path) -> None:
    if process.returncode:
        printed = run_dir.with_suffix(".txt").read_text("utf-8", errors="replace").strip().splitlines()
        raise TrainingFailedError("\n".join(printed[-8:]) or f"the training ended with exit code {process.returncode}")


def _steps(run_dir: Path) -> int:
    """Return the number of logged steps."""
    try:
        return (run_dir / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def _step_seconds(run_dir: Path) -> float:
    try:
        last, now = (run_dir / "metrics.jsonl").stat().st_mtime, time.time()
    except OSError:
        return 1.0
    return max(0.05, min(5.0, now - last))

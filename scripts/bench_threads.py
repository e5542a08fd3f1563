"""Measure the cost of waiting threads: one run alone and two at once, for several numbers of threads and policies.

    python scripts/bench_threads.py [--rounds 5] [--models tiny,large,maxplus_muon]

Each cell is the median time of a step in milliseconds over interleaved rounds; for two runs at once, the time of the
slower run. The processes are started once and take turns. Nothing else may run meanwhile. maxplus and the Transformer
read tiny Shakespeare, from the cache or downloaded.
"""

import argparse
import os
import statistics
import subprocess
import sys
from datetime import date
from typing import Any

import torch

from samout_train.runtime import available_cores, device_name

V8 = ("model=v8", "data=random")
SHAKESPEARE = ("data=shakespeare", "data.seq_len=64", "data.batch_size=12")
MAXPLUS = ("experiment=maxplus_shakespeare_cpu",)
TRANSFORMER = (
    *SHAKESPEARE,
    "model=transformer_modern",
    "model.hidden_size=128",
    "model.num_heads=4",
    "model.num_layers=4",
)
SIZES = {
    "tiny": (*V8, "model.hidden_size=32", "model.num_heads=2", "model.num_layers=1", "data.batch_size=8"),
    "small": (*V8, "model.hidden_size=128", "model.num_heads=4", "model.num_layers=2", "data.batch_size=16"),
    "large": (*V8, "data.batch_size=16"),
    "maxplus_muon": MAXPLUS,
    "maxplus_adamw": (*MAXPLUS, "optimizer=adamw"),
    "transformer_muon": (*TRANSFORMER, "optimizer=muon"),
    "transformer_adamw": TRANSFORMER,
}
# Environment variables, set before torch is loaded; without any, OpenMP has its defaults.
POLICIES = {
    "as it is": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spins 1,000": {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"},
    "spins 10,000": {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "0"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
# For each line that it reads, trains for that many seconds, and prints the time of a step.
RUN = """
import sys, time
from samout_train import build_trainer
trainer = build_trainer(["device=cpu", "precision=fp32", "model.dropout=0", *sys.argv[1:]])
for _ in range(2):
    trainer.step()
print("warm", flush=True)
for seconds in sys.stdin:
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < float(seconds):
        trainer.step()
        steps += 1
    print((time.perf_counter() - started) / steps, flush=True)
"""


def started(size: str, policy: str) -> Any:
    """Start a process with a size and a policy."""
    cleared = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    environment = {**cleared, "OMP_NUM_THREADS": str(available_cores()), **POLICIES[policy]}
    words = [sys.executable, "-c", RUN, *SIZES[size]]
    return subprocess.Popen(words, env=environment, text=True, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL)


def step_ms(runs: list[Any], seconds: float) -> float:
    """Return the milliseconds of a step of the slowest of several runs."""
    for run in runs:
        run.stdin.write(f"{seconds}\n")
        run.stdin.flush()
    return 1000 * max([float(run.stdout.readline()) for run in runs])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--models", default=",".join(SIZES))
    arguments = parser.parse_args()
    print(f"{date.today()}, {device_name(torch.device('cpu'))}, {available_cores()} cores, torch {torch.__version__}")
    print(f"{'ms a step':22}" + "".join(f"{policy:>14}" for policy in POLICIES))
    for size in arguments.models.split(","):
        runs = {policy: [started(size, policy) for _ in range(2)] for policy in POLICIES}
        for pair in runs.values():
            for run in pair:
                run.stdout.readline()
        for at_once in (1, 2):
            found: dict[str, list[float]] = {policy: [] for policy in POLICIES}
            for _ in range(arguments.rounds):
                for policy, pair in runs.items():
                    found[policy].append(step_ms(pair[:at_once], arguments.seconds))
            medians = "".join(f"{statistics.median(times):14.2f}" for times in found.values())
            print(f"{size}, {'two at once' if at_once == 2 else 'alone'}".ljust(22) + medians, flush=True)
        for pair in runs.values():
            for run in pair:
                run.stdin.close()
                run.wait()


if __name__ == "__main__":
    main()

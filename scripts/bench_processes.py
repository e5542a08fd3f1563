"""Measure the speed-up of several one-core processes over one process: the published V8, medians of alternating runs.

python scripts/bench_processes.py [--processes 2] [--steps 8] [--rounds 3] [--parallel ddp] [key=value ...]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


def tokens_per_second(processes: int, words: Sequence[str]) -> float:
    """Return the speed of a separate run, without evaluations and checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        start = [sys.executable, "-m"]
        if processes > 1:
            start += ["torch.distributed.run", "--nproc-per-node", str(processes), "-m"]
        command = [*start, "samout_train", *words, f"run_dir={folder}/run"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        summary = json.loads(Path(folder, "run", "summary.json").read_text("utf-8"))
    return float(summary["tokens_per_second"])


def main(words: Sequence[str] | None = None) -> None:
    """Measures, and prints each round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parallel", choices=["ddp", "fsdp"], default="ddp")
    parser.add_argument("settings", nargs="*", default=[], help="such as data.batch_size=32")
    arguments = parser.parse_args(words)
    run = ["experiment=published_v8", "device=cpu", f"trainer.max_steps={arguments.steps}", *arguments.settings]
    run += ["trainer.eval_every_n_steps=1000", "trainer.eval_batches=1", "trainer.final_eval_batches=1"]
    ratios = []
    for number in range(1, arguments.rounds + 1):
        alone = tokens_per_second(1, run)
        shared = tokens_per_second(arguments.processes, [*run, f"trainer.parallel={arguments.parallel}"])
        ratios.append(shared / alone)
        print(f"round {number}: {alone:,.0f} and {shared:,.0f} tokens/s, {ratios[-1]:.2f} times", flush=True)
    print(f"median of {arguments.rounds}: {statistics.median(ratios):.2f} times ({arguments.parallel})")


if __name__ == "__main__":
    main()

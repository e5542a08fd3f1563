"""Measure the framework's overhead: the step time of a run against a bare loop over the same model, in one process.

The bare loop only trains: it draws batches, clips and schedules. The run has its default callbacks (console report,
metrics.jsonl, TensorBoard, samples) and logs every ten steps. Both take turns in blocks of ten steps, and the medians
of the blocks are compared. Nothing else may run meanwhile.

    python scripts/bench_overhead.py [--blocks 100]
"""

import argparse
import copy
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date

import torch
from torch import nn
from torch.nn import functional as F

from samout_train import train
from samout_train.training import Callback, RunContext

STEPS_IN_A_BLOCK = 10
WARM_UP_BLOCKS = 2
CASES = {
    "D 64, 2 layers, 12 x 64": [
        *("model=v8", "data=python_source", "model.hidden_size=64", "model.num_heads=4", "model.num_layers=2"),
        *("data.seq_len=64", "data.batch_size=12", "optimizer=adamw", "schedule=cosine"),
    ],
    "published V8, 100 x 49": ["model=v8", "data=random", "optimizer=adam", "trainer.log_every_n_steps=10"],
}


class TakeTurns(Callback):
    """Runs a block of the bare loop between any two blocks of the real run, and times both."""

    def __init__(self) -> None:
        self.real_seconds: list[float] = []
        self.bare_seconds: list[float] = []

    def on_start(self, context: RunContext) -> None:
        """Builds the bare loop with a copy of the model."""
        self._bare_step = bare_loop(copy.deepcopy(context.model), context)
        self._synchronize = torch.cuda.synchronize if context.device.type == "cuda" else lambda: None
        self._from = time.perf_counter()

    def on_step(self, step: int) -> None:
        """Runs a block of the bare loop after each block of the run."""
        if step % STEPS_IN_A_BLOCK:
            return
        self._synchronize()
        self.real_seconds.append(time.perf_counter() - self._from)
        start = time.perf_counter()
        for _ in range(STEPS_IN_A_BLOCK):
            self._bare_step()
        self._synchronize()
        self.bare_seconds.append(time.perf_counter() - start)
        self._from = time.perf_counter()


def bare_loop(model: nn.Module, context: RunContext) -> Callable[[], None]:
    """Return a training step as a simple script would write it, with the same optimizer settings and precision."""
    settings, rows = context.settings, context.source.train
    lr, decay = float(settings["optimizer.lr"]), float(settings.get("optimizer.weight_decay", 0))
    if decay:
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=True)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    everything = rows.windows(0, min(rows.num_windows, 20_000))
    autocast = torch.autocast(context.device.type, dtype=torch.bfloat16, enabled=context.precision == "bf16")
    total, step = int(context.total_steps or 1), 0

    def one_step() -> None:
        nonlocal step
        step += 1
        ids = everything[torch.randint(len(everything), (context.batch_size,))].to(context.device, non_blocking=True)
        for group in optimizer.param_groups:
            group["lr"] = lr * (0.55 + 0.45 * math.cos(math.pi * step / total))
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            logits, _ = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), ignore_index=3)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return one_step


def measure(overrides: list[str], blocks: int) -> tuple[float, float, list[float]]:
    """Return median seconds per step of the real run and of the bare loop, and quartiles of their ratio per block."""
    turns = TakeTurns()
    RUNNING.append(turns)
    with tempfile.TemporaryDirectory() as folder:
        steps = STEPS_IN_A_BLOCK * (blocks + WARM_UP_BLOCKS)
        never = [
            f"trainer.eval_every_n_steps={10 * steps}",
            "checkpoint.every_n_steps=null",
            "trainer.final_eval_batches=1",
        ]
        callback = f"+callbacks.zz_turns._target_={__name__}.running"
        train([*overrides, *never, f"trainer.max_steps={steps}", f"run_dir={folder}/run", callback])
    real, bare = turns.real_seconds[WARM_UP_BLOCKS:], turns.bare_seconds[WARM_UP_BLOCKS:]
    ratios = [one / other for one, other in zip(real, bare, strict=True)]
    return (
        statistics.median(real) / STEPS_IN_A_BLOCK,
        statistics.median(bare) / STEPS_IN_A_BLOCK,
        statistics.quantiles(ratios, n=4),
    )


RUNNING: list[TakeTurns] = []


def running() -> TakeTurns:
    """Return the callback of the current measurement; the configuration names this function."""
    return RUNNING[-1]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--blocks", type=int, default=100, help="blocks of ten steps of each loop in the small case")
    blocks = parser.parse_args().blocks
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"{date.today()}, torch {torch.__version__}, Python {platform.python_version()}, {device}")
    print(f"{'case':28} {'real ms':>9} {'bare ms':>9} {'real / bare':>12}   quartiles of the ratio")
    for index, (name, overrides) in enumerate(CASES.items()):
        real, bare, quartiles = measure(overrides, blocks if index == 0 else max(4, blocks // 10))
        print(
            f"{name:28} {1000 * real:9.2f} {1000 * bare:9.2f} {real / bare:12.3f}   "
            + " ".join(f"{quartile:.3f}" for quartile in quartiles)
        )


if __name__ == "__main__":
    main()

"""Measure what calling a fused CPU operator costs the host, on tensors so small that the kernel itself takes no time.

    python scripts/bench_host.py [--rounds 15] [--calls 200] [--threads 2]

Prints medians of processor time in microseconds per call: without gradients, with both passes, and with both passes in
a graph of 20 calls, which share the cost of starting autograd. `nothing` is a torch.autograd.Function without work. All
measurements take turns. To compare two versions of the program, run whole processes in turns.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the program sets it

import torch
from torch import Tensor

from samout_train.ops import nats_and_errors, use_kernels
from samout_train.ops.max_scan import max_mix, max_scan
from samout_train.ops.samout_layer import operator as layer
from samout_train.ops.semiring_scan import linear_scan

BATCH, TIME, WIDTH = 2, 4, 16
CHAIN = 20


class Nothing(torch.autograd.Function):
    """Passes its input and its gradient on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return a tensor like x."""
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return the gradient."""
        return grads[0]


def operators() -> dict[str, Callable[[Tensor], Tensor]]:
    """Return functions of x (B, T, D) by name; each returns a tensor like x."""
    decay, other = torch.rand(BATCH, TIME, WIDTH), torch.randn(BATCH, TIME, WIDTH)
    weight, bias, alpha, seed = torch.ones(WIDTH), torch.zeros(WIDTH), torch.tensor(0.5), torch.tensor(0)
    return {
        "nothing": lambda x: Nothing.apply(x),
        "torch: x * y": lambda x: x * other,
        "max_scan": lambda x: max_scan(x)[0],
        "gated": lambda x: layer.gated(x, other),
        "blended": lambda x: layer.blended(x, other, alpha, weight, bias, 1e-5, 0.0, seed, None)[0],
        "linear_scan": lambda x: linear_scan(decay, x)[0],
    }


def ways() -> dict[tuple[str, str], tuple[Callable[[], object], int]]:
    """Return the function to measure for each operator and column, and the number of operator calls in it."""
    x, grad = torch.randn(BATCH, TIME, WIDTH, requires_grad=True), torch.randn(BATCH, TIME, WIDTH)
    packed = torch.randn(BATCH, TIME, 3 * WIDTH, requires_grad=True)
    logits, targets, nats = torch.randn(4, 16), torch.zeros(4, dtype=torch.int64), torch.empty(4)
    found: dict[tuple[str, str], tuple[Callable[[], object], int]] = {}
    for name, operator in operators().items():
        found[name, "forward"] = torch.no_grad()(lambda call=operator: call(x)), 1
        found[name, "both"] = (lambda call=operator: torch.autograd.grad(call(x), x, grad)), 1

        def chain(call: Callable[[Tensor], Tensor] = operator) -> object:
            y = x
            for _ in range(CHAIN):
                y = call(y)
            return torch.autograd.grad(y, x, grad)

        found[name, "in a chain"] = chain, CHAIN
    found["max_mix, v8", "forward"] = torch.no_grad()(lambda: max_mix(packed, form="v8")), 1
    found["max_mix, v8", "both"] = (lambda: torch.autograd.grad(max_mix(packed, form="v8")[0], packed, grad)), 1
    found["nats_and_errors", "both"] = (lambda: nats_and_errors(logits, targets, nats, -100)), 1
    return found


def main() -> None:
    """Measures and prints."""
    arguments = argparse.ArgumentParser()
    for name, default in (("rounds", 15), ("calls", 200), ("threads", 2)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    use_kernels("fused")
    measured = ways()
    times: dict[tuple[str, str], list[float]] = {key: [] for key in measured}
    for turn in range(given.rounds + 1):
        for key, (way, calls) in measured.items():
            repeats = max(1, given.calls // calls)
            started = time.process_time()
            for _ in range(repeats):
                way()
            if turn:
                times[key].append(1e6 * (time.process_time() - started) / (repeats * calls))
    columns = ("forward", "both", "in a chain")
    print(f"{given.threads} threads, microseconds a call, load {os.getloadavg()[0]:.1f}")
    print(f"{'':18}" + "".join(f"{column:>12}" for column in columns))
    for name in dict.fromkeys(name for name, _ in measured):
        cells = [f"{statistics.median(times.get((name, column), [float('nan')])):12.1f}" for column in columns]
        print(f"{name:18}" + "".join(cells).replace("nan", "  -"))


if __name__ == "__main__":
    main()

"""Compare recurrences in chunks with recurrences token by token, on the CPU, forward and backward.

    python scripts/bench_operators.py [--rounds 5] [--threads 2] [--batch 8] [--time 1024] [--heads 4] [--width 64]

Checks that both give the same result, then times them in turns in one process, and prints medians in milliseconds.
Then compares max-plus blocks of two, hard and soft, with an elementwise maximum with a decay and as many channels.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from samout_train.ops import use_kernels
from samout_train.ops.block_scan import block_mix
from samout_train.ops.delta_rule import delta_rule, serial as delta_rule_serial
from samout_train.ops.linear_attention import linear_attention, serial as linear_attention_serial
from samout_train.ops.max_scan import max_mix
from samout_train.ops.semiring_scan import linear_scan, reference
from samout_train.runtime import keep_freed_memory

TOLERANCE = 1e-4  # of the norm: float32 sums over 1,024 tokens, in another order


def cases(batch: int, length: int, heads: int, width: int) -> dict[str, tuple[Callable[..., Tensor], ...]]:
    """Return, for each operator, its chunked form, its serial form, and a function that draws inputs."""
    rows = (batch, heads, length)

    def matrices(*, decay: tuple[int, ...] | None, delta: bool) -> list[Tensor]:
        q, k, v = (torch.randn(*rows, width) for _ in range(3))
        given = [q, F.normalize(k, dim=-1), v]
        if delta:
            given.append(torch.rand(rows))
        if decay is not None:
            given.append(F.logsigmoid(torch.randn(decay) + 3))
        return given

    def channels() -> list[Tensor]:
        shape = (batch, length, heads * width)
        return [torch.rand(shape), torch.randn(shape), torch.randn(batch, heads * width)]

    return {
        "linear attention, scalar decay": (
            lambda *given: linear_attention(*given)[0],
            lambda *given: linear_attention_serial(*given)[0],
            partial(matrices, decay=rows, delta=False),
        ),
        "linear attention, channel decay": (
            lambda *given: linear_attention(*given)[0],
            lambda *given: linear_attention_serial(*given)[0],
            partial(matrices, decay=(*rows, width), delta=False),
        ),
        "gated delta rule": (
            lambda *given: delta_rule(*given)[0],
            lambda *given: delta_rule_serial(*given)[0],
            partial(matrices, decay=rows, delta=True),
        ),
        "elementwise scan": (
            lambda *given: linear_scan(*given)[0],
            reference.serial,
            channels,
        ),
    }


def measured(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each function, measured in turns; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(found) for name, found in times.items()}


def blocks_beside_channels(batch: int, length: int, width: int, rounds: int) -> None:
    """Time max-plus blocks of two and an elementwise maximum with a decay; print milliseconds and ratios."""
    packed, decay = torch.randn(batch, length, 3 * width), -torch.rand(batch, length, width)
    blocks, state = torch.randn(batch, length, 4 * width), torch.randn(batch, 2, width // 2)
    upstream = torch.randn(batch, length, width)

    def elementwise(packed: Tensor, decay: Tensor) -> Tensor:
        return max_mix(packed, None, decay, form="v8")[0]

    def both(way: Callable[..., Tensor], *inputs: Tensor) -> object:
        inputs = tuple(each.detach().requires_grad_() for each in inputs)
        return torch.autograd.grad(way(*inputs), inputs, upstream)

    ways = {"elementwise maximum with a decay": partial(both, elementwise, packed, decay)}
    for name, temperature in (("blocks of two, hard", None), ("blocks of two, temperature 0.7", torch.tensor(0.7))):

        def mixed(blocks: Tensor, state: Tensor, temperature: Tensor | None = temperature) -> Tensor:
            return block_mix(blocks, state, temperature)[0]

        ways[name] = partial(both, mixed, blocks, state)
    found = measured(ways, rounds)
    print(f"\n{f'{batch} x {length} x {width}':34}{'ms':>10}{'times':>10}   load {os.getloadavg()[0]:.1f}")
    for name, milliseconds in found.items():
        print(f"{name:34}{milliseconds:10.2f}{milliseconds / next(iter(found.values())):10.2f}")


def main() -> None:
    """Measures and prints."""
    arguments = argparse.ArgumentParser()
    for name, default in (("rounds", 5), ("threads", 2), ("batch", 8), ("time", 1024), ("heads", 4), ("width", 64)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    use_kernels("auto")
    keep_freed_memory()
    torch.manual_seed(0)
    print(
        f"{given.batch} x {given.time} x {given.heads} x {given.width}, {given.threads} threads, float32, milliseconds"
    )
    print(f"{'forward and backward':34}{'serial':>10}{'chunked':>10}{'times':>8}   load {os.getloadavg()[0]:.1f}")
    for name, (chunked, serial, draw) in cases(given.batch, given.time, given.heads, given.width).items():
        inputs = [each.requires_grad_() for each in draw()]
        upstream = torch.randn_like(chunked(*inputs))

        def both(way: Callable[..., Tensor], inputs: list[Tensor] = inputs, grad: Tensor = upstream) -> list[Tensor]:
            output = way(*inputs)
            return [output.detach(), *torch.autograd.grad(output, inputs, grad)]

        for got, wanted in zip(both(chunked), both(serial), strict=True):
            error = float((got - wanted).norm() / wanted.norm())
            assert error <= TOLERANCE, f"{name}: the two differ by {error:.1e}"
        found = measured({"serial": partial(both, serial), "chunked": partial(both, chunked)}, given.rounds)
        print(
            f"{name:34}{found['serial']:10.1f}{found['chunked']:10.1f}{found['serial'] / found['chunked']:8.1f}"
            f"   load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    for batch, length, width in ((12, 64, 232), (8, 256, 384), (8, 1024, 384)):
        blocks_beside_channels(batch, length, width, rounds=10 * given.rounds)


if __name__ == "__main__":
    main()

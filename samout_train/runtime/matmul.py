"""Measure how fast this machine multiplies matrices, which is what a model's speed is compared with.

A share of a data sheet's peak says little where that is another GPU's, or where the machine is busy.
"""

# N side of the matrices

import time
from functools import cache

import torch
from torch import Tensor

from samout_train.runtime.device import PrecisionName, wait_for

SIDES = {"cpu": 768, "cuda": 2048, "mps": 2048}
MOST_SECONDS = 0.05
LEAST_ROUNDS, MOST_ROUNDS = 3, 20
TOGETHER = 8  # products of a round on a device that works through a queue
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def matmul_rate(device: torch.device, precision: PrecisionName) -> float:
    """Return the operations a second of a product of large square matrices (FLOP/s), measured once a process.

    The fastest of some rounds, within about 50 ms. No global random state is used.

    Args:
        device: Where to measure.
        precision: Of the matrices.
    """
    return _measured(device, precision, torch.get_num_threads(), torch.get_float32_matmul_precision())


@cache
def _measured(device: torch.device, precision: PrecisionName, threads: int, float32_products: str) -> float:
    side = SIDES[device.type]
    generator = torch.Generator().manual_seed(0)
    # Zeros would be multiplied faster than what a model has: a GPU then takes less power.
    a_NN, b_NN = (torch.randn(side, side, generator=generator).to(device, DTYPES[precision]) for _ in range(2))
    together = TOGETHER
    if device.type == "cpu":
        together = 1
    with torch.inference_mode():
        seconds = _fastest_round(a_NN, b_NN, together, device)
    return 2 * side**3 * together / seconds


def _fastest_round(a_NN: Tensor, b_NN: Tensor, together: int, device: torch.device) -> float:
    fastest = float("inf")
    began = time.perf_counter()
    for number in range(MOST_ROUNDS + 1):
        wait_for(device)
        started = time.perf_counter()
        for _ in range(together):
            torch.mm(a_NN, b_NN)
        wait_for(device)
        ended = time.perf_counter()
        if number:  # the first one finds a kernel
            fastest = min(fastest, ended - started)
        if number >= LEAST_ROUNDS and ended - began > MOST_SECONDS:
            break
    return max(fastest, 1e-9)

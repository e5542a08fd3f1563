"""Measure how fast this machine multiplies matrices. A model's speed is reported as a share of this rate.

A share of a data sheet's peak would say little for another GPU or on a busy machine.
"""

# N rows and columns of a matrix

import time
from functools import cache

import torch
from torch import Tensor

from samout_train.runtime.device import PrecisionName, wait_for

SIDES = {"cpu": 768, "cuda": 2048, "mps": 2048}
MOST_SECONDS = 0.05
LEAST_ROUNDS, MOST_ROUNDS = 3, 20
TOGETHER = 8  # products per round on a device with a queue
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def matmul_rate(device: torch.device, precision: PrecisionName) -> float:
    """Return the rate of a product of large square matrices in FLOP/s, measured once per precision and threads.

    The fastest of several rounds counts; they take about 50 ms. No global random state is used.

    Args:
        device: The device to measure.
        precision: The precision of the matrices.
    """
    return _measured(device, precision, torch.get_num_threads(), torch.get_float32_matmul_precision())


@cache
def _measured(device: torch.device, precision: PrecisionName, threads: int, float32_products: str) -> float:
    side = SIDES[device.type]
    generator = torch.Generator().manual_seed(0)
    # Random values, because a GPU needs less power for zeros and multiplies them faster than a model's values.
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
        if number:  # in the first round torch chooses a kernel
            fastest = min(fastest, ended - started)
        if number >= LEAST_ROUNDS and ended - began > MOST_SECONDS:
            break
    return max(fastest, 1e-9)

"""x W^T + b for a few rows on the CPU: each weight is read once, by all cores. Needs numba."""

# R rows, N outputs, K inputs

import threading
from typing import Any

import numba
import torch
from torch import Tensor

WEIGHTS_A_THREAD = 32_768  # waking a thread costs as much as reading about so many
MOST_THREADS = numba.get_num_threads()
ONE_AT_A_TIME = threading.Lock()  # numba's simplest threading layer ends the process otherwise


def few_rows(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """x W^T + b.

    Args:
        x: (..., K), float32 on the CPU.
        weight_NK: float32 on the CPU, contiguous.
        bias_N: None for nothing.

    Returns:
        (..., N). The same input gives the same bits, with any number of threads.
    """
    outputs, inputs = weight_NK.shape
    x_RK = x.detach().reshape(-1, inputs).contiguous()
    y_RN = x_RK.new_empty(len(x_RK), outputs)
    bias = x_RK.new_zeros(outputs) if bias_N is None else bias_N.detach()
    threads = min(torch.get_num_threads(), MOST_THREADS, max(1, weight_NK.numel() // WEIGHTS_A_THREAD))
    with ONE_AT_A_TIME:
        numba.set_num_threads(threads)
        _few_rows(x_RK.numpy(), weight_NK.detach().numpy(), bias.numpy(), y_RN.numpy(), threads)
    return y_RN.view(*x.shape[:-1], outputs)


# Reassociation lets the sum over k run in vectors; nothing is assumed about NaN or infinity.
@numba.njit(parallel=True, cache=True, fastmath={"reassoc", "contract"})
def _few_rows(x_RK: Any, weight_NK: Any, bias_N: Any, y_RN: Any, parts: int) -> None:
    rows, inputs = x_RK.shape
    outputs = weight_NK.shape[0]
    for part in numba.prange(parts):
        for n in range(part * outputs // parts, (part + 1) * outputs // parts):
            for row in range(rows):
                total = bias_N[n]
                for k in range(inputs):
                    total += weight_NK[n, k] * x_RK[row, k]
                y_RN[row, n] = total

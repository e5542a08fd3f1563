"""Compute x W^T + b for a few rows on the CPU: the cores share the weights and read each once. Needs numba."""

# R rows, N outputs, K inputs

from typing import Any

import numba
from torch import Tensor

from samout_train.ops.numba_support import call, compiled, num_threads

WEIGHTS_A_THREAD = 32_768  # waking a thread costs about as much as reading this many weights


def few_rows(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """Return x W^T + b.

    Args:
        x: (..., K), float32 on the CPU.
        weight_NK: float32 on the CPU, contiguous.

    Returns:
        (..., N). The same input gives the same bits with any number of threads.
    """
    outputs, inputs = weight_NK.shape
    x_RK = x.detach().reshape(-1, inputs).contiguous()
    y_RN = x_RK.new_empty(len(x_RK), outputs)
    if bias_N is None:
        bias_N = x_RK.new_zeros(outputs)
    threads = min(num_threads(), max(1, weight_NK.numel() // WEIGHTS_A_THREAD))
    call(_few_rows, threads, x_RK, weight_NK, bias_N, y_RN, threads)
    return y_RN.view(*x.shape[:-1], outputs)


# Reassociation lets the sum over k run in vectors. NaN and infinity keep their meaning.
@compiled(parallel=True, fastmath={"reassoc", "contract"})
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

"""Compute x W^T + b for a few rows on the CPU: the cores share the weights and read each once. Needs numba."""

# R rows, N outputs, K inputs

from typing import Any

import numba
import numpy as np
from torch import Tensor

from samout_train.ops.numba_support import array_at, call_at, compiled, num_threads


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
    weight_NK, bias_N = weight_NK.contiguous(), bias_N.contiguous()
    threads = num_threads(weight_NK.numel())
    addresses = (x_RK.data_ptr(), weight_NK.data_ptr(), bias_N.data_ptr(), y_RN.data_ptr())
    call_at(_few_rows_at, threads, *addresses, len(x_RK), outputs, inputs, threads)
    return y_RN.view(*x.shape[:-1], outputs)


@compiled()
def _few_rows_at(x: int, weight: int, bias: int, y: int, rows: int, outputs: int, inputs: int, parts: int) -> None:
    """Run `_few_rows` on arrays at addresses."""
    element = np.float32(0)
    _few_rows(
        array_at(x, (rows, inputs), element),
        array_at(weight, (outputs, inputs), element),
        array_at(bias, (outputs,), element),
        array_at(y, (rows, outputs), element),
        parts,
    )


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

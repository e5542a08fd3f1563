"""A linear layer: torch's, except where a few rows make it a matter of reading the weights once."""

# N outputs, K inputs

import torch
from torch import Tensor
from torch.nn import functional as F

from samout_train.ops.kernels import is_fused

# Measured on two cores of an AMD EPYC: torch.nn.functional.linear (MKL) takes 2 to 10 times as long from 256 x 256
# weights on and up to 8 rows; with smaller weights or with more rows it is the faster one.
MOST_ROWS = 8
LEAST_WEIGHTS = 65_536


def linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x W^T + b, as torch.nn.functional.linear; sums are in another order for a few rows without gradient.

    Args:
        x: Input of any shape (..., K).
        weight_NK: The matrix.
        bias_N: What is added; None for nothing.

    Returns:
        (..., N), in the dtype that torch gives.
    """
    if not _few_rows_on_cpu(x, weight_NK):
        return F.linear(x, weight_NK, bias_N)
    from samout_train.ops.linear.cpu import few_rows

    return few_rows(x, weight_NK, bias_N)


def _few_rows_on_cpu(x: Tensor, weight_NK: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and 0 < x.numel() <= MOST_ROWS * weight_NK.shape[1]
        and weight_NK.numel() >= LEAST_WEIGHTS
        and x.dtype == weight_NK.dtype == torch.float32
        and x.device.type == weight_NK.device.type == "cpu"
        and x.shape[-1] == weight_NK.shape[1]
        and weight_NK.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and is_fused("cpu", torch.float32)
    )

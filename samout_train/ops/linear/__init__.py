"""A linear layer: torch's, except where a CPU reads or multiplies float32 matrices faster in another way."""

# N outputs, K inputs

import torch
from torch import Tensor
from torch.nn import functional as F

from samout_train.ops.kernels import is_fused, only_torch
from samout_train.ops.linear import onednn
from samout_train.ops.linear.choice import chosen_products, has_onednn

# On two cores of an AMD EPYC, torch.nn.functional.linear (MKL) took 2 to 10 times as long as numba from 256 x 256
# weights on and up to 8 rows, and less with smaller weights or more rows; on an Intel Xeon it took 0.2 to 0.8 times as
# long. So it is measured (samout_train.models.products).
MOST_ROWS = 8
LEAST_WEIGHTS = 65_536
# Multiplications from which on oneDNN's products pay for the way to them: 2,048 x 240 by 240 x 240 did (4 % of a step),
# 768 x 128 by 128 x 128 did not.
LEAST_PRODUCTS = 2**26


def linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x W^T + b, as torch.nn.functional.linear; sums may be in another order. Of large products on some CPUs, there
    are no gradients of gradients.

    Args:
        x: Input of any shape (..., K).
        weight_NK: The matrix.
        bias_N: What is added; None for nothing.

    Returns:
        (..., N), in the dtype that torch gives.
    """
    if not _is_plain_float32_on_cpu(x, weight_NK):
        return F.linear(x, weight_NK, bias_N)
    if _is_a_matter_of_reading(x, weight_NK):
        from samout_train.ops.linear.cpu import few_rows

        return few_rows(x, weight_NK, bias_N)
    is_large = x.numel() * len(weight_NK) >= LEAST_PRODUCTS
    if is_large and chosen_products().many == "onednn" and not only_torch() and has_onednn():
        return onednn.many_rows(x, weight_NK, bias_N)
    return F.linear(x, weight_NK, bias_N)


def _is_plain_float32_on_cpu(x: Tensor, weight_NK: Tensor) -> bool:
    return (
        x.dtype == weight_NK.dtype == torch.float32
        and x.device.type == weight_NK.device.type == "cpu"
        and x.numel() > 0
        and x.shape[-1] == weight_NK.shape[1]
        and weight_NK.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _is_a_matter_of_reading(x: Tensor, weight_NK: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and x.numel() <= MOST_ROWS * weight_NK.shape[1]
        and weight_NK.numel() >= LEAST_WEIGHTS
        and chosen_products().few == "numba"
        and is_fused("cpu", torch.float32)
    )

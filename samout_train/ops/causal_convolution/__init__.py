"""Convolve each channel over a token and the few before it: y_t = silu(b + sum over j of w_j x_{t - K + 1 + j}).

On CUDA a kernel reads x once and writes y once, in the precision of the products that follow; its backward pass
computes all gradients at once. Other devices, and torch.compile, run torch's own operations.
"""

# B batch, T time, S time of the input, D width, K tokens in the kernel

import torch
from torch import Tensor
from torch.nn import functional as F

from samout_train.ops.kernels import is_fused, products_dtype

DEVICES = {"cuda"}
MOST_SIZE = 8  # a kernel is unrolled over tiles, in registers


def convolved(
    x_BTD: Tensor,
    tokens_BKD: Tensor | None,
    weight_DK: Tensor,
    bias_D: Tensor | None,
    *,
    silu: bool,
    feeds_products: bool,
) -> Tensor | None:
    """Return y (B, T, D), in the precision of x times weight.

    Args:
        x_BTD: Input.
        tokens_BKD: The K - 1 inputs before it; None for zeros.
        weight_DK: Kernels, from the earliest token to the last.
        bias_D: Biases; None for none.
        silu: Whether SiLU follows the sum.
        feeds_products: Whether only matrix products read y, which is then written in their precision.

    Returns:
        None if no kernel supports the inputs: then use `convolved_reference`.
    """
    if not _takes(x_BTD, weight_DK):
        return None
    from samout_train.ops.causal_convolution import operator

    whole_BSD = x_BTD
    if tokens_BKD is not None:
        whole_BSD = torch.cat([tokens_BKD.to(x_BTD.dtype), x_BTD], dim=1)
    if whole_BSD.stride(-1) != 1:
        whole_BSD = whole_BSD.contiguous()
    dtype = torch.promote_types(x_BTD.dtype, weight_DK.dtype)
    if feeds_products:
        dtype = products_dtype(x_BTD)
    return operator.convolve(whole_BSD, weight_DK.contiguous(), bias_D, silu, x_BTD.shape[1], dtype)


def convolved_reference(whole_BSD: Tensor, weight_DK: Tensor, bias_D: Tensor | None, *, silu: bool) -> Tensor:
    """Return y for inputs that begin with the K - 1 earlier tokens, by torch's own operations.

    It is elementwise, so that no library chooses an algorithm by the length. The speed is similar: 12 x 64 tokens of
    width 144 on two CPU cores, both passes, took 1.4 to 2.7 ms; conv1d took 1.5 to 1.6 ms.
    """
    time = whole_BSD.shape[1] - weight_DK.shape[1] + 1
    y_BTD = whole_BSD.new_zeros(())
    if bias_D is not None:
        y_BTD = bias_D
    for index, weight_D in enumerate(weight_DK.unbind(1)):
        y_BTD = y_BTD + whole_BSD[:, index : index + time] * weight_D
    return F.silu(y_BTD) if silu else y_BTD


def _takes(x_BTD: Tensor, weight_DK: Tensor) -> bool:
    return (
        x_BTD.device.type in DEVICES
        and x_BTD.numel() > 0
        and weight_DK.dtype == torch.float32
        and weight_DK.shape[1] <= MOST_SIZE
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and is_fused(x_BTD.device.type, x_BTD.dtype)
    )

"""One token through a whole SamOut layer in one kernel, where nothing but the weights is worth reading."""

# B batch, T time, D width

import torch
from torch import Tensor

from samout_train.ops.kernels import is_fused

MOST_ROWS = 8  # with more, matrix products are the better way


def takes_step(x_BTD: Tensor) -> bool:
    """Whether `samout_step` of samout_train.ops.samout_step.cpu is to take this input: one token of a few sequences,
    in float32 on a CPU, without gradients."""
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and x_BTD.shape[1] == 1
        and x_BTD.shape[0] <= MOST_ROWS
        and x_BTD.dtype == torch.float32
        and x_BTD.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and is_fused("cpu", torch.float32)
    )

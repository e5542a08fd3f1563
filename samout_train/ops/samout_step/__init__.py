"""One token through a whole SamOut layer in one kernel, where nothing but the weights is worth reading."""

# B batch, T time, D width

from typing import Any

import torch
from torch import Tensor

from samout_train.ops.kernels import is_fused

MOST_ROWS = 8  # with more, matrix products are the better way


def takes_step(x_BTD: Tensor) -> bool:
    """Return whether `step` is to take this input: one token of a few sequences, in float32 on a CPU, no gradients."""
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


def step(x_BD: Tensor, state_BD: Tensor, *of_layer: Any) -> tuple[Tensor, Tensor]:
    """Return the layer's output and its next state, as `cpu.samout_step` does, which needs numba."""
    from samout_train.ops.samout_step import cpu

    return cpu.samout_step(x_BD, state_BD, *of_layer)

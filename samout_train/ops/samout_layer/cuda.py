"""The parts of a SamOut layer on CUDA, in float32, bfloat16 and float16. Needs triton.

Everything is computed in float32. Dropout keeps the elements that cpu.py keeps for the same seed. Gradients of weight,
bias and alpha are sums of a fixed number of programs, so that the same input gives the same bits.
"""

# B batch, T time, D width, F inner width

import torch
from torch import Tensor

from samout_train.ops.kernels import power_of_two
from samout_train.ops.samout_layer import dropping
from samout_train.ops.samout_layer.triton import (
    blend_row,
    blend_row_gradients,
    gate_element_gradients,
    gate_elements,
)

ELEMENTS = 2048  # of a program of the gate: sixteen a thread
PROGRAMS = 528  # of the blend's gradients: four for each multiprocessor of an H100 or H200
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def gate(up_BTF: Tensor, gate_BTF: Tensor, y_BTF: Tensor, *, halves: bool = False, silu: bool = False) -> None:
    """Fill y_BTF with up * relu(gate), or up * silu(gate).

    Args:
        halves: Whether both are halves of one contiguous tensor (B, T, 2 F).
        silu: Whether the gate is a silu.
    """
    count = y_BTF.numel()
    options = {"SILU": silu, "F": y_BTF.shape[-1], "HALVES": halves, "BLOCK": ELEMENTS, **OPTIONS}
    with torch.cuda.device_of(y_BTF):
        gate_elements[(-(-count // ELEMENTS),)](up_BTF, gate_BTF, y_BTF, count, **options)


def gate_gradients(
    up_BTF: Tensor,
    gate_BTF: Tensor,
    grad_BTF: Tensor,
    grad_up_BTF: Tensor,
    grad_gate_BTF: Tensor,
    *,
    halves: bool = False,
    silu: bool = False,
) -> None:
    """Fill the last two."""
    count = grad_BTF.numel()
    options = {"SILU": silu, "F": grad_BTF.shape[-1], "HALVES": halves, "BLOCK": ELEMENTS, **OPTIONS}
    with torch.cuda.device_of(grad_BTF):
        gate_element_gradients[(-(-count // ELEMENTS),)](
            up_BTF, gate_BTF, grad_BTF, grad_up_BTF, grad_gate_BTF, count, **options
        )


def blend(
    f_BTD: Tensor,
    x_BTD: Tensor,
    alpha: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    eps: float,
    dropout: float,
    seed: Tensor,
    y_BTD: Tensor,
    statistics: Tensor,
    copy_BTD: Tensor | None = None,
) -> None:
    """Fill y_BTD with LayerNorm(alpha * dropout(f) + (1 - alpha) * x) + x, and statistics (2, N): mean, 1 / std.

    If given, copy_BTD receives y in its own precision.
    """
    width = weight_D.numel()
    positions = x_BTD.numel() // width
    kept, threshold = dropping(dropout)
    with torch.cuda.device_of(x_BTD):
        blend_row[(positions,)](
            f_BTD,
            x_BTD,
            alpha,
            weight_D,
            bias_D,
            seed,
            y_BTD,
            y_BTD if copy_BTD is None else copy_BTD,
            statistics,
            positions,
            kept,
            threshold,
            eps,
            DROPS=dropout > 0,
            COPIES=copy_BTD is not None,
            D=width,
            BLOCK=power_of_two(width),
            **OPTIONS,
        )


def blend_gradients(
    f_BTD: Tensor,
    x_BTD: Tensor,
    alpha: Tensor,
    weight_D: Tensor,
    statistics: Tensor,
    dropout: float,
    seed: Tensor,
    grad_BTD: Tensor,
    grad_f_BTD: Tensor,
    grad_x_BTD: Tensor,
    grad_others: Tensor,
    grad_copy_BTD: Tensor | None = None,
) -> None:
    """Fill grad_f_BTD, grad_x_BTD and grad_others, which holds the gradients of weight, bias and alpha in this order.

    Args:
        grad_BTD: The gradient of the blend, in any precision.
        grad_copy_BTD: The gradient of its copy; None without one.
    """
    width = weight_D.numel()
    positions = x_BTD.numel() // width
    kept, threshold = dropping(dropout)
    programs = min(positions, PROGRAMS)
    partial = grad_others.new_empty(programs, grad_others.numel())
    with torch.cuda.device_of(x_BTD):
        blend_row_gradients[(programs,)](
            f_BTD,
            x_BTD,
            alpha,
            weight_D,
            statistics,
            seed,
            grad_BTD,
            grad_BTD if grad_copy_BTD is None else grad_copy_BTD,
            grad_f_BTD,
            grad_x_BTD,
            partial,
            positions,
            kept,
            threshold,
            DROPS=dropout > 0,
            COPIES=grad_copy_BTD is not None,
            D=width,
            BLOCK=power_of_two(width),
            **OPTIONS,
        )
    torch.sum(partial, 0, out=grad_others)

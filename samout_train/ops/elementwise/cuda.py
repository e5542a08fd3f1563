"""Launch the elementwise parts of a layer on CUDA, in float32, bfloat16 and float16. Needs triton.

Everything is computed in float32. Gradients of weights and biases are sums of a fixed number of programs, without
atomics, so that the same input gives the same bits.
"""

# B batch, T time, D width, H heads, K width of a head

import torch
from torch import Tensor

from samout_train.ops.elementwise.triton import (
    add_norm_row,
    add_norm_row_gradients,
    minus_softplus_element_gradients,
    minus_softplus_elements,
    turn_row_gradients,
    turn_rows,
)
from samout_train.ops.kernels import power_of_two
from samout_train.ops.samout_layer import dropping

PROGRAMS = 528  # of gradients: four for each multiprocessor of an H100 or H200
ELEMENTS = 1024  # pairs of a program's heads
DECAYS = 2048  # of a program
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def add_norm(
    x_BTD: Tensor,
    branch_BTD: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None,
    eps: float,
    dropout: float,
    seed: Tensor,
    total_BTD: Tensor,
    y_BTD: Tensor,
    statistics: Tensor,
) -> None:
    """Fill the last three; total_BTD only if there is a branch."""
    width = weight_D.numel()
    positions = x_BTD.numel() // width
    kept, threshold = dropping(dropout)
    with torch.cuda.device_of(x_BTD):
        add_norm_row[(positions,)](
            x_BTD,
            x_BTD if branch_BTD is None else branch_BTD,
            weight_D,
            weight_D if bias_D is None else bias_D,
            seed,
            total_BTD,
            y_BTD,
            statistics,
            positions,
            kept,
            threshold,
            eps,
            ADDS=branch_BTD is not None,
            DROPS=dropout > 0,
            CENTRES=bias_D is not None,
            D=width,
            BLOCK=power_of_two(width),
            **OPTIONS,
        )


def add_norm_gradients(
    total_BTD: Tensor,
    weight_D: Tensor,
    statistics: Tensor,
    dropout: float,
    seed: Tensor,
    grad_total_BTD: Tensor | None,
    grad_y_BTD: Tensor,
    grad_x_BTD: Tensor,
    grad_branch_BTD: Tensor,
    grad_weights: Tensor,
) -> None:
    """Fill the last three: grad_branch_BTD only if it is not empty, and the gradients of weight and bias."""
    width = weight_D.numel()
    positions = total_BTD.numel() // width
    kept, threshold = dropping(dropout)
    programs = min(positions, PROGRAMS)
    partial = grad_weights.new_empty(programs, grad_weights.numel())
    with torch.cuda.device_of(total_BTD):
        add_norm_row_gradients[(programs,)](
            total_BTD,
            weight_D,
            statistics,
            seed,
            total_BTD if grad_total_BTD is None else grad_total_BTD,
            grad_y_BTD,
            grad_x_BTD,
            grad_branch_BTD,
            partial,
            positions,
            kept,
            threshold,
            HAS_GRAD_TOTAL=grad_total_BTD is not None,
            ADDS=grad_branch_BTD.numel() > 0,
            DROPS=dropout > 0,
            CENTRES=grad_weights.numel() > width,
            D=width,
            BLOCK=power_of_two(width),
            **OPTIONS,
        )
    torch.sum(partial, 0, out=grad_weights)


def turn(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    q_weight_K: Tensor | None,
    k_weight_K: Tensor | None,
    eps: float,
    q_turned_BTHK: Tensor,
    k_turned_BTHK: Tensor,
    k_plain_BTHK: Tensor,
) -> None:
    """Fill the last three, k_plain_BTHK only if there are weights; the first two may have any strides but the last."""
    rows, sizes = _sizes(q_BTHK)
    with torch.cuda.device_of(q_BTHK):
        turn_rows[(-(-rows // sizes["ROWS"]),)](
            q_BTHK,
            k_BTHK,
            q_BTHK if q_weight_K is None else q_weight_K,
            k_BTHK if k_weight_K is None else k_weight_K,
            q_turned_BTHK,
            k_turned_BTHK,
            k_plain_BTHK,
            rows,
            q_BTHK.shape[1],
            *q_BTHK.stride()[:3],
            *k_BTHK.stride()[:3],
            eps,
            NORMS=q_weight_K is not None,
            **sizes,
            **OPTIONS,
        )


def turn_gradients(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    q_weight_K: Tensor | None,
    k_weight_K: Tensor | None,
    eps: float,
    grad_q_turned_BTHK: Tensor,
    grad_k_turned_BTHK: Tensor,
    grad_k_plain_BTHK: Tensor | None,
    grad_q_BTHK: Tensor,
    grad_k_BTHK: Tensor,
    grad_weights: Tensor,
) -> None:
    """Fill the last three; the gradients of both weights, if there are any, lie one after the other."""
    rows, sizes = _sizes(q_BTHK)
    programs = min(-(-rows // sizes["ROWS"]), PROGRAMS)
    partial = grad_weights.new_empty(programs, grad_weights.numel())
    with torch.cuda.device_of(q_BTHK):
        turn_row_gradients[(programs,)](
            q_BTHK,
            k_BTHK,
            q_BTHK if q_weight_K is None else q_weight_K,
            k_BTHK if k_weight_K is None else k_weight_K,
            grad_q_turned_BTHK,
            grad_k_turned_BTHK,
            grad_k_turned_BTHK if grad_k_plain_BTHK is None else grad_k_plain_BTHK,
            grad_q_BTHK,
            grad_k_BTHK,
            partial,
            rows,
            q_BTHK.shape[1],
            *q_BTHK.stride()[:3],
            *k_BTHK.stride()[:3],
            eps,
            HAS_PLAIN=grad_k_plain_BTHK is not None,
            NORMS=q_weight_K is not None,
            **sizes,
            **OPTIONS,
        )
    if q_weight_K is not None:
        torch.sum(partial, 0, out=grad_weights)


def minus_softplus(z_BTD: Tensor, y_BTD: Tensor) -> None:
    """Fill y_BTD with -softplus(z)."""
    count = z_BTD.numel()
    with torch.cuda.device_of(z_BTD):
        minus_softplus_elements[(-(-count // DECAYS),)](z_BTD, y_BTD, count, BLOCK=DECAYS, **OPTIONS)


def minus_softplus_gradients(z_BTD: Tensor, grad_BTD: Tensor, grad_z_BTD: Tensor) -> None:
    """Fill grad_z_BTD."""
    count = z_BTD.numel()
    with torch.cuda.device_of(z_BTD):
        minus_softplus_element_gradients[(-(-count // DECAYS),)](
            z_BTD, grad_BTD, grad_z_BTD, count, BLOCK=DECAYS, **OPTIONS
        )


def _sizes(q_BTHK: Tensor) -> tuple[int, dict[str, int]]:
    """Return the number of heads of all tokens, and the sizes of a kernel."""
    heads, pairs = q_BTHK.shape[2], q_BTHK.shape[3] // 2
    columns = power_of_two(pairs)
    sizes = {"H": heads, "P": pairs, "PAIRS": columns, "ROWS": max(1, ELEMENTS // columns)}
    return q_BTHK.numel() // (2 * pairs), sizes

"""The elementwise linear recurrence: the running maximum's scan with (+, *) for (max, +).

    h_t = a_t h_{t-1} + x_t

RG-LRU is built on it. a_t = 0 drops what came before the token.
"""

# B batch, T time, D width

from torch import Tensor

from samout_train.ops.chunking import widened
from samout_train.ops.kernels import is_fused
from samout_train.ops.linear_scan import reference

__all__ = ["linear_scan"]


def linear_scan(a_BTD: Tensor, x_BTD: Tensor, state_BD: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return h of all tokens, and the last one.

    Computed in float32, or in float64 where x is that, and rounded once.

    Args:
        a_BTD: What is left of h from one token to the next.
        x_BTD: What is added, T at least 1.
        state_BD: h before the first token; None for zero.

    Returns:
        (h_BTD, state_BD): h in the dtype of x; the state is at least float32.

    Raises:
        ValueError: if T is 0, shapes disagree, or kernels=fused and no fused kernel takes this.
    """
    batch, time, width = x_BTD.shape
    if time == 0 or a_BTD.shape != x_BTD.shape:
        raise ValueError(f"a_BTD {tuple(a_BTD.shape)} and x_BTD {tuple(x_BTD.shape)} must be equal, with T at least 1")
    if state_BD is not None and state_BD.shape != (batch, width):
        raise ValueError(f"state_BD {tuple(state_BD.shape)} must be {(batch, width)} for an input {tuple(x_BTD.shape)}")
    dtype, x_BTD = x_BTD.dtype, widened(x_BTD)
    a_BTD = a_BTD.to(x_BTD.dtype)
    if state_BD is None:
        state_BD = x_BTD.new_zeros(batch, width)
    state_BD = state_BD.to(x_BTD.dtype)
    if time == 1:
        h_BTD = a_BTD * state_BD[:, None] + x_BTD
    elif x_BTD.device.type == "cpu" and is_fused("cpu", x_BTD.dtype):
        from samout_train.ops.linear_scan.operator import fused_linear_scan

        h_BTD = fused_linear_scan(a_BTD, x_BTD, state_BD)
    else:
        h_BTD = reference.by_blocks(a_BTD, x_BTD, state_BD)
    return h_BTD.to(dtype), h_BTD[:, -1]

"""Scan elementwise over a semiring, forward in time: each channel keeps one number, which decays and is added to.

    plus_times:  h_t = a_t h_{t-1} + x_t
    max_plus:    h_t = max(a_t + h_{t-1}, x_t)
    max_min:     h_t = max(min(a_t, h_{t-1}), x_t)

RG-LRU is built on the first. SamOut is built on the second, which runs in the kernels of `samout_train.ops.max_scan`.
In plus_times, a_t = 0 erases everything before the token; in the other two, a_t = minus infinity does.

Ties: x_t is preferred to the kept value, and a_t to h_{t-1}. The preferred value takes the whole gradient.
"""

# B batch, T time, D width

from torch import Tensor

from samout_train.ops.chunking import widened
from samout_train.ops.kernels import is_fused
from samout_train.ops.max_scan import max_scan
from samout_train.ops.semiring_scan import reference
from samout_train.ops.semiring_scan.reference import Semiring

__all__ = ["Semiring", "linear_scan", "semiring_scan"]


def linear_scan(a_BTD: Tensor, x_BTD: Tensor, state_BD: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return `semiring_scan` over plus_times: h_t = a_t h_{t-1} + x_t."""
    return semiring_scan(a_BTD, x_BTD, state_BD, semiring="plus_times")


def semiring_scan(
    a_BTD: Tensor, x_BTD: Tensor, state_BD: Tensor | None = None, *, semiring: Semiring
) -> tuple[Tensor, Tensor]:
    """Return h of all tokens, and the last one.

    Computed in float32, or in float64 if x is float64, and rounded once.

    Args:
        a_BTD: Factor, term or bound of h from one token to the next.
        x_BTD: Input that is added, T at least 1.
        state_BD: h before the first token; None for the semiring's zero: 0, or minus infinity for a maximum.
        semiring: `plus_times`, `max_plus` or `max_min`.

    Returns:
        (h_BTD, state_BD): h in the dtype of x; the state is at least float32.

    Raises:
        ValueError: if T is 0, shapes disagree, or kernels=fused and no fused kernel supports the input.
    """
    batch, time, width = x_BTD.shape
    if time == 0 or a_BTD.shape != x_BTD.shape:
        raise ValueError(f"a_BTD {tuple(a_BTD.shape)} and x_BTD {tuple(x_BTD.shape)} must be equal, with T at least 1")
    if state_BD is not None and state_BD.shape != (batch, width):
        raise ValueError(f"state_BD {tuple(state_BD.shape)} must be {(batch, width)} for an input {tuple(x_BTD.shape)}")
    if semiring == "max_plus":
        return max_scan(x_BTD, state_BD, a_BTD)
    dtype, x_BTD = x_BTD.dtype, widened(x_BTD)
    a_BTD = a_BTD.to(x_BTD.dtype)
    if state_BD is None:
        state_BD = x_BTD.new_full((batch, width), reference.ZERO[semiring])
    state_BD = state_BD.to(x_BTD.dtype)
    if time == 1:
        h_BTD = reference.serial(a_BTD, x_BTD, state_BD, semiring)
    elif x_BTD.device.type in ("cpu", "cuda") and is_fused(x_BTD.device.type, x_BTD.dtype):
        from samout_train.ops.semiring_scan.operator import fused_scan

        h_BTD = fused_scan(a_BTD, x_BTD, state_BD, semiring)
    else:
        h_BTD = reference.by_blocks(a_BTD, x_BTD, state_BD, semiring)
    return h_BTD.to(dtype), h_BTD[:, -1]

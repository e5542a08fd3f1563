"""The running maximum that every SamOut mixer is built on, alone and fused with the output formulas of V1 and V8.

    m_t = max(m_{t-1} + a_t, d_t)

The decay a_t is at most 0. Without it this is the plain running maximum of V1 and V8.
"""

# B batch, T time, D width, P packed: the streams side by side

import torch
from torch import Tensor

from samout_train.ops.kernels import is_fused
from samout_train.ops.max_scan import reference
from samout_train.ops.max_scan.reference import Form, num_streams

__all__ = ["Form", "max_mix", "max_scan"]


def max_scan(x_BTD: Tensor, state_BD: Tensor | None = None, decay_BTD: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the running maximum along time, and the next state.

    Args:
        x_BTD: Input, float32, bfloat16, float16 or float64, T at least 1. NaN propagates.
        state_BD: Maximum so far; None means minus infinity.
        decay_BTD: Added to the maximum before each step, at most 0; None for no decay.

    Returns:
        (y_BTD, state_BD): y at t is the maximum over 0..t and the state, in the dtype of x. The state is at
            least float32.

    Raises:
        ValueError: if T is 0, shapes disagree, or kernels=fused and no fused kernel supports the input.
    """
    return max_mix(x_BTD, state_BD, decay_BTD, form="scan")


def max_mix(
    packed_BTP: Tensor, state_BD: Tensor | None = None, decay_BTD: Tensor | None = None, *, form: Form
) -> tuple[Tensor, Tensor]:
    """Return a mixer's output from the running maximum of its streams, and the next state.

    Args:
        packed_BTP: The streams of `form` side by side, P their number times D; T at least 1. `v8`: e, c, d with
            y = (e m + c) m. `v1`: b, c, d with y = (m + c) m + b. `scan`: d alone, y = m.
        state_BD: Maximum so far; None means minus infinity.
        decay_BTD: Added to the maximum before each step, at most 0; None for no decay.
        form: The output formula.

    Returns:
        (y_BTD, state_BD): y in the dtype of packed_BTP; the state, the last maximum, is at least float32.

    Raises:
        ValueError: if T is 0, shapes disagree, or kernels=fused and no fused kernel supports the input.
    """
    batch, time, packed_width = packed_BTP.shape
    width, rest = divmod(packed_width, num_streams(form))
    if time == 0 or rest:
        wanted = f"T at least 1 and a width that {num_streams(form)} divides"
        raise ValueError(f"the input {tuple(packed_BTP.shape)} of form={form} must have {wanted}")
    if state_BD is not None and state_BD.shape != (batch, width):
        raise ValueError(
            f"state_BD {tuple(state_BD.shape)} must be {(batch, width)} for an input {tuple(packed_BTP.shape)}"
        )
    if decay_BTD is not None and decay_BTD.shape != (batch, time, width):
        raise ValueError(f"decay_BTD {tuple(decay_BTD.shape)} must be {(batch, time, width)}")
    if not is_fused(packed_BTP.device.type, packed_BTP.dtype):
        wide = torch.promote_types(packed_BTP.dtype, torch.float32)
        if state_BD is None:
            state_BD = packed_BTP.new_full((batch, width), -torch.inf, dtype=wide)
        return reference.max_mix(packed_BTP, state_BD, decay_BTD, form)
    from samout_train.ops.max_scan.operator import fused_max_mix

    return fused_max_mix(packed_BTP, state_BD, decay_BTD, form)

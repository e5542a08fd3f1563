"""The running maximum along time in plain torch: the definition of truth.

Ties and gradients follow torch.cummax: among equal values the latest one is the maximum, and it alone takes the
gradient. A state that ties with an input therefore gives its gradient away to the input.
"""

# B batch, T time, S the state and then time, D width

import torch
from torch import Tensor


def max_scan(x_BTD: Tensor, state_BD: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Running maximum along time, with carried state.

    Args:
        x_BTD: Input, float32, bfloat16, float16 or float64, T at least 1. NaN propagates.
        state_BD: Maximum so far; None means minus infinity.

    Returns:
        (y_BTD, state_BD): y at t is the maximum over 0..t and the state; same dtype as x.

    Raises:
        ValueError: if T is 0, or state_BD and x_BTD disagree on B or D.
    """
    batch, time, width = x_BTD.shape
    if time == 0:
        raise ValueError(f"x_BTD {tuple(x_BTD.shape)} has no time step: give at least one")
    if state_BD is None:
        y_BTD = x_BTD.cummax(dim=1).values
        return y_BTD, y_BTD[:, -1]
    if state_BD.shape != (batch, width):
        raise ValueError(f"state_BD {tuple(state_BD.shape)} must be {(batch, width)} for x_BTD {tuple(x_BTD.shape)}")
    if time == 1 and not torch.is_grad_enabled():  # one token; with a gradient, ties would share it
        y_BTD = torch.maximum(x_BTD, state_BD.to(x_BTD.dtype).unsqueeze(1))
        return y_BTD, y_BTD[:, -1]
    with_state_BSD = torch.cat([state_BD.to(x_BTD.dtype).unsqueeze(1), x_BTD], dim=1)
    y_BTD = with_state_BSD.cummax(dim=1).values[:, 1:]
    return y_BTD, y_BTD[:, -1]

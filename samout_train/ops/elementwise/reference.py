"""Compute the elementwise parts of a layer by torch's own operations: they define what the fused kernels compute."""

# B batch, T time, D width, H heads, K width of a head

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.runtime import float64_place

ROTARY_BASE = 10_000.0


def added(x_BTD: Tensor, branch_BTD: Tensor | None, dropout: float) -> Tensor:
    """Return x + dropout(branch); x without a branch."""
    if branch_BTD is None:
        return x_BTD
    return x_BTD + F.dropout(branch_BTD, dropout)


def added_and_normalised(
    x_BTD: Tensor, branch_BTD: Tensor | None, dropout: float, norm: nn.Module
) -> tuple[Tensor, Tensor]:
    """Return x + dropout(branch), and its norm."""
    total_BTD = added(x_BTD, branch_BTD, dropout)
    return total_BTD, norm(total_BTD)


def turned(x_BHTK: Tensor, position_T: Tensor) -> Tensor:
    """Turn the pair (k, k + K / 2) of each head by rotary positions; with an odd width, the last channel stays.

    Angles are float64: in float32, an angle of 10,000 radians is off by 1e-3.

    Args:
        x_BHTK: Queries or keys.
        position_T: Positions of the tokens, int64.
    """
    pairs, dtype = x_BHTK.shape[-1] // 2, torch.promote_types(x_BHTK.dtype, torch.float32)
    place = float64_place(x_BHTK.device)
    rate_P = ROTARY_BASE ** (-torch.arange(pairs, device=place, dtype=torch.float64) / max(1, pairs))
    angle_TP = position_T.to(place)[:, None] * rate_P
    cos_TP, sin_TP = (part_TP.to(dtype).to(x_BHTK.device) for part_TP in (angle_TP.cos(), angle_TP.sin()))
    first_BHTP, second_BHTP, rest = x_BHTK.to(dtype).split([pairs, pairs, x_BHTK.shape[-1] - 2 * pairs], dim=-1)
    parts = [first_BHTP * cos_TP - second_BHTP * sin_TP, first_BHTP * sin_TP + second_BHTP * cos_TP, rest]
    return torch.cat(parts, dim=-1).to(x_BHTK.dtype)

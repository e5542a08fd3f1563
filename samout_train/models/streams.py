"""One product for the streams of a mixer that are sums of its projections."""

# B batch, T time, D width, P packed: the streams or the projections side by side

from collections.abc import Callable

import torch
from torch import Tensor

from samout_train.ops.linear import linear

FEW_TOKENS = 64  # with fewer, adding matrices costs more than a wider product


def project_streams(
    x_BTD: Tensor, weight_PD: Tensor, num_projections: int, streams_of: Callable[..., tuple[Tensor, ...]]
) -> Tensor:
    """The streams of x, side by side.

    A sum of projections is one projection by the sum of their matrices: with fewer streams than projections the product
    is a smaller one, and autograd gives each matrix its own gradient.

    Args:
        x_BTD: What is projected.
        weight_PD: The matrices of all projections, one below the other.
        num_projections: How many.
        streams_of: Makes the streams from the projections, linearly, and so from their matrices, too.

    Returns:
        (B, T, P): as many times D as there are streams.
    """
    batch, time, _ = x_BTD.shape
    if batch * time < FEW_TOKENS and not torch.is_grad_enabled():
        return torch.cat(streams_of(*linear(x_BTD, weight_PD).chunk(num_projections, dim=-1)), dim=-1)
    return linear(x_BTD, torch.cat(streams_of(*weight_PD.chunk(num_projections))))

"""Adam, as the published programs use it."""

from typing import Annotated

import torch
from torch import nn

from samout_train.config import Positive, Probability, validated


@validated
def adam(
    model: nn.Module,
    *,
    lr: Annotated[float, Positive],
    betas: tuple[Annotated[float, Probability], Annotated[float, Probability]],
    eps: Annotated[float, Positive],
) -> torch.optim.Optimizer:
    """Build torch.optim.Adam over all parameters, with the fused kernel.

    Args:
        model: The model whose parameters are updated.
        lr: Base learning rate.
        betas: Decay rates of the first and second moment.
        eps: Added to the denominator.
    """
    return torch.optim.Adam(model.parameters(), lr=lr, betas=(float(betas[0]), float(betas[1])), eps=eps, fused=True)

"""AdamW with decay on matrices only: biases, norms and scalars are not decayed."""

from typing import Annotated

import torch
from torch import nn

from samout_train.config import NonNegative, Positive, Probability, validated
from samout_train.training.weight_decay import decayed_group


@validated
def adamw(
    model: nn.Module,
    *,
    lr: Annotated[float, Positive],
    betas: tuple[Annotated[float, Probability], Annotated[float, Probability]],
    eps: Annotated[float, Positive],
    weight_decay: Annotated[float, NonNegative],
    weight_decay_end: Annotated[float, NonNegative] | None = None,
) -> torch.optim.Optimizer:
    """Build torch.optim.AdamW with the fused kernel, in two groups.

    Args:
        model: The model whose parameters are updated.
        lr: Base learning rate.
        betas: Decay rates of the first and second moment.
        eps: Added to the denominator.
        weight_decay: Decay of parameters with two dimensions or more, the embedding included.
        weight_decay_end: Decay of the same parameters at the last step; see `decayed_group`.
    """
    matrices, vectors = [], []
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            matrices.append(parameter)
        else:
            vectors.append(parameter)
    groups = [decayed_group(matrices, weight_decay, weight_decay_end), {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(float(betas[0]), float(betas[1])), eps=eps, fused=True)

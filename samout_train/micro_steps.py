"""Micro-steps: the gradient of a batch, a share of its rows at a time."""

# R rows, T time

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from samout_train.data.batches import Batch, Batches
from samout_train.losses import next_token_nats
from samout_train.runtime import PrecisionName, autocast


def backward(
    forward: Callable[..., Any], batch: Batch, batches: Batches, precision: PrecisionName, num: int, scaler: GradScaler
) -> Tensor:
    """Adds the gradient of a batch, scaled, to those that are there.

    Args:
        forward: Called as `logits, state = forward(ids)`.
        batch: What to learn from.
        batches: Where it came from: how its rows are split, and which targets count.
        precision: Of the forward and backward pass.
        num: Micro-steps; each takes an equal share of the rows.
        scaler: Of the loss.

    Returns:
        The loss in nats per counted target, without scale.
    """
    losses = []
    for ids_RT in batch.ids_RT.chunk(num):
        with autocast(precision, batches.device):
            inputs_RT, targets_RT = batches.rows.split(ids_RT)
            nats = next_token_nats(forward, inputs_RT, targets_RT, batches.ignore_index, most_targets=batch.num_targets)
        loss = nats / batch.num_targets
        scaler.scale(loss).backward()
        losses.append(loss.detach())
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

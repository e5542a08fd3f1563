"""Micro-steps: the gradient of a batch, a share of its rows at a time, and of long rows a chunk at a time.

A chunk goes on from the state that the one before it left, without a gradient into it (truncated backpropagation
through time, Williams and Peng 1990): the loss is that of whole rows, and memory that of one chunk.
"""

# R rows, T time

from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from samout_train.data import Batch, Batches
from samout_train.models import SharedModel, map_state
from samout_train.runtime import PrecisionName, autocast, distributed


def chunk_problem(model: Any, chunk_len: int | None) -> str | None:
    """What speaks against learning rows in chunks; None where nothing does."""
    if chunk_len is None or not getattr(model, "sees_future", False):
        return None
    return f"trainer.chunk_len ({chunk_len}): this model sees the whole sequence and carries no state: leave it out"


def backward(
    model: SharedModel,
    batch: Batch,
    batches: Batches,
    precision: PrecisionName,
    num: int,
    chunk_len: int | None,
    scaler: GradScaler,
) -> Tensor:
    """Adds the gradient of a batch, scaled, to those that are there.

    Args:
        model: What learns.
        batch: What to learn from.
        batches: Where it came from: how its rows are split, and which targets count.
        precision: Of the forward and backward pass.
        num: Micro-steps; each takes an equal share of the rows.
        chunk_len: Targets of a row in one forward and backward pass; None for all of them.
        scaler: Of the loss.

    Returns:
        The loss in nats per counted target, over all processes and without scale.
    """
    losses = []
    shares = batch.ids_RT.chunk(num)
    for number, ids_RT in enumerate(shares, start=1):
        inputs_RT, targets_RT = batches.rows.split(ids_RT)
        length = chunk_len or inputs_RT.shape[1]
        state: Any = None
        for start in range(0, inputs_RT.shape[1], length):
            piece = slice(start, start + length)
            chunk_RT, chunk_targets_RT = inputs_RT[:, piece], targets_RT[:, piece]
            is_last = number == len(shares) and start + length >= inputs_RT.shape[1]
            most = min(batch.own_targets, chunk_targets_RT.numel())
            with model.summing(is_last):
                with autocast(precision, batches.device):
                    nats, state = model.nats(chunk_RT, chunk_targets_RT, batches.ignore_index, most, state)
                loss = nats / batch.num_targets
                scaler.scale(loss * distributed.count() if distributed.count() > 1 else loss).backward()
            losses.append(loss.detach())
            state = map_state(Tensor.detach, state) if length < inputs_RT.shape[1] else None
    return distributed.summed(losses[0] if len(losses) == 1 else torch.stack(losses).sum())

"""Register the fused cross-entropy as a torch operator for tracing; otherwise its kernels are called directly."""

# R rows, V vocabulary

import torch
from torch import Tensor

from samout_train.ops.kernels import is_traced, kernels_of


def fused_nats_and_errors(
    logits_RV: Tensor, targets_R: Tensor, nats_R: Tensor, ignore_index: int, learns: bool
) -> None:
    """See samout_train.ops.cross_entropy.nats_and_errors."""
    if is_traced(logits_RV):
        _nats_and_errors(logits_RV, targets_R, nats_R, ignore_index, learns)
    else:
        _run(logits_RV, targets_R, nats_R, ignore_index, learns)


def _run(logits_RV: Tensor, targets_R: Tensor, nats_R: Tensor, ignore_index: int, learns: bool) -> None:
    kernels_of(__package__, logits_RV).nats_and_errors(logits_RV, targets_R, nats_R, ignore_index, learns)


@torch.library.custom_op("samout_train::nats_and_errors", mutates_args=("logits_RV", "nats_R"))
def _nats_and_errors(logits_RV: Tensor, targets_R: Tensor, nats_R: Tensor, ignore_index: int, learns: bool) -> None:
    """Fill nats_R, and the logits with their gradient."""
    _run(logits_RV, targets_R, nats_R, ignore_index, learns)


@_nats_and_errors.register_fake
def _(logits_RV: Tensor, targets_R: Tensor, nats_R: Tensor, ignore_index: int, learns: bool) -> None:
    return None

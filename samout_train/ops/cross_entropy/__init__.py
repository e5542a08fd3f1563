"""Compute the cross-entropy of logits: the nats of each row, and its gradient, which overwrites the logits.

    nats_r = log sum_v exp(x_rv) - x_rt          errors_rv = exp(x_rv) / sum_v exp(x_rv) - [v = t]

A row is read once from memory. Statistics are float32 whatever the dtype of the logits; a row whose target is ignored
has 0 nats and errors of 0.
"""

# R rows, V vocabulary

import torch
from torch import Tensor

from samout_train.ops.cross_entropy import reference
from samout_train.ops.kernels import is_fused

__all__ = ["nats_and_errors"]


def nats_and_errors(
    logits_RV: Tensor, targets_R: Tensor, nats_R: Tensor, ignore_index: int, *, learns: bool = True
) -> None:
    """Fill `nats_R`, and overwrite the logits with the gradient of the sum of nats with respect to them.

    Args:
        logits_RV: Unnormalised log-probabilities, contiguous; float32, bfloat16, float16 or float64. Without `learns`,
            their content is undefined afterwards.
        targets_R: Token ids, int64, contiguous.
        nats_R: Receives the nats, contiguous: float32, or float64 for logits of float64.
        ignore_index: Rows with this target add nothing; it need not be a valid id.
        learns: Whether to compute the gradient.

    Raises:
        ValueError: if the targets are not int64, or a tensor is not contiguous.
    """
    device = logits_RV.device.type
    if not len(logits_RV):
        return
    if logits_RV.dtype == torch.float64 or not is_fused(device, logits_RV.dtype):
        reference.nats_and_errors(logits_RV, targets_R, nats_R, ignore_index, learns)
        return
    if targets_R.dtype != torch.int64:
        raise ValueError(f"targets_R ({targets_R.dtype}) must be torch.int64: convert it with .long()")
    if not (logits_RV.is_contiguous() and targets_R.is_contiguous() and nats_R.is_contiguous()):
        raise ValueError("logits_RV, targets_R and nats_R must be contiguous: call .contiguous() on each before")
    from samout_train.ops.cross_entropy import operator

    operator.fused_nats_and_errors(logits_RV, targets_R, nats_R, ignore_index, learns)

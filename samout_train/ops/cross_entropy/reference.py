"""Define the nats of rows of logits and their gradients in plain torch; fused kernels are compared with it."""

# R rows, V vocabulary

import torch
from torch import Tensor


def nats_and_errors(logits_RV: Tensor, targets_R: Tensor, nats_R: Tensor, ignore_index: int, learns: bool) -> None:
    """See samout_train.ops.cross_entropy.nats_and_errors."""
    wide_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
    counted_R1 = targets_R[:, None] != ignore_index
    column_R1 = targets_R[:, None].where(counted_R1, 0)  # an ignored target need not be a valid id
    log_total_R1 = wide_RV.logsumexp(1, keepdim=True)
    nats_R.copy_((log_total_R1 - wide_RV.gather(1, column_R1)).where(counted_R1, 0).squeeze(1))
    if not learns:
        return
    error_RV = wide_RV.sub_(log_total_R1).exp_()  # overwrites float32 logits: `wide_RV` shares their memory
    error_RV.scatter_add_(1, column_R1, torch.full_like(log_total_R1, -1))
    logits_RV.copy_(error_RV.masked_fill_(~counted_R1, 0))

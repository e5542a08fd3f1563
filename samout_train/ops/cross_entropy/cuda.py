"""Compute the nats of rows of logits and their gradients on CUDA, in float32, bfloat16 and float16. Needs triton.

A program computes a row. The logits are read twice, the second time from the second-level cache, and written once.
"""

# R rows, V vocabulary

import torch
from torch import Tensor

from samout_train.ops.cross_entropy.triton import cross_entropy_row
from samout_train.ops.kernels import power_of_two

MOST_A_BLOCK = 4096  # logits of a row in registers at a time: 16 per thread
OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}


def nats_and_errors(logits_RV: Tensor, targets_R: Tensor, nats_R: Tensor, ignore_index: int, learns: bool) -> None:
    """Fill nats_R; with `learns`, overwrite the logits with their gradient."""
    rows, ids = logits_RV.shape
    block = min(MOST_A_BLOCK, power_of_two(ids))
    with torch.cuda.device_of(logits_RV):
        cross_entropy_row[(rows,)](
            logits_RV, targets_R, nats_R, ignore_index, ids, BLOCK=block, LEARNS=learns, **OPTIONS
        )

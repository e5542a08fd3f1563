"""Whether float32 products on a GPU may round their inputs to TF32, which keeps 10 bits of 23 and is faster.

Said both ways for the whole process, so that no run has what the run before it chose; torch's own default is full
precision for matrix products and TF32 for cuDNN, which recurrent modules use.
"""

from typing import Any, cast

import torch


def use_tf32(tf32: bool, device: torch.device) -> None:
    """Decides for the whole process.

    Args:
        tf32: Whether matrix products and cuDNN round to TF32.
        device: Where the model runs.

    Raises:
        ValueError: if TF32 is asked for and the device is no GPU.
    """
    if problem := tf32_problem(tf32, device):
        raise ValueError(problem)
    precision = "tf32" if tf32 else "ieee"
    cuda, cudnn = cast(Any, torch.backends.cuda), cast(Any, torch.backends.cudnn)
    for operations in (cuda.matmul, cudnn.conv, cudnn.rnn):
        operations.fp32_precision = precision


def tf32_problem(tf32: bool, device: torch.device) -> str | None:
    """What speaks against TF32 on a device; None where nothing does."""
    if tf32 and device.type != "cuda":
        return f"trainer.tf32=true: is for CUDA, and this run is on {device}: leave it out, or set device=cuda"
    return None

"""Run the recurrence of row-normalised max-plus blocks, which can count, fused with its mixer's output formula."""

# B batch, T time, D width, P packed: the streams side by side, N entries a block, G blocks, D = N G

import torch
from torch import Tensor

from samout_train.ops.block_scan import reference
from samout_train.ops.kernels import demands_fused, is_fused

__all__ = ["block_mix", "require_entries"]

MOST_ENTRIES = 8  # largest block of the fused kernels: each size is compiled separately


def require_entries(entries: int) -> None:
    """Refuse blocks that are too large for the fused kernels if kernels=fused demands one.

    Raises:
        ValueError: if they are; the message names the largest size.
    """
    if entries > MOST_ENTRIES and demands_fused():
        raise ValueError(
            f"kernels=fused is not possible: fused kernels take blocks of at most {MOST_ENTRIES} entries, not "
            f"{entries}. Set kernels=auto to run without"
        )


def block_mix(packed_BTP: Tensor, state_BNG: Tensor, temperature: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Run the recurrence of `samout_train.ops.block_scan.reference` along time, with carried state.

    Args:
        packed_BTP: The streams e, c (D each) and L side by side, P = (2 + N) D; T at least 1. Entry i of block g is
            channel i G + g, and its L[i, j] lies at (i N + j) G + g.
        state_BNG: The state so far.
        temperature: 0-d, on the device of packed_BTP; None for 0, the hard maximum. It is a tensor so that a compiled
            graph holds no changing number, and so that CUDA kernels read it without making the host wait.

    Returns:
        (y_BTD, state_BNG): y in the dtype of packed_BTP, the state after the last token, at least float32.

    Raises:
        ValueError: if T is 0, shapes disagree, or kernels=fused and blocks are larger than those of the fused kernels.
    """
    batch, time, packed_width = packed_BTP.shape
    size, blocks = state_BNG.shape[1:]
    wanted = (2 + size) * size * blocks
    if time == 0 or packed_width != wanted or len(state_BNG) != batch:
        raise ValueError(
            f"the input {tuple(packed_BTP.shape)} must have T at least 1, the batch of the state "
            f"{tuple(state_BNG.shape)} and a width of {wanted}"
        )
    device_type = packed_BTP.device.type
    require_entries(size)
    if size > MOST_ENTRIES or device_type not in ("cpu", "cuda") or not is_fused(device_type, packed_BTP.dtype):
        at = 0.0
        if temperature is not None:
            at = float(temperature)
        return reference.block_mix(packed_BTP, state_BNG, at)
    from samout_train.ops.block_scan.operator import fused_block_mix

    return fused_block_mix(packed_BTP, state_BNG.to(torch.float32), temperature)

"""Lay out the tensors that the CPU kernels for recurrences over matrices read and write.

A kernel reads rows with any stride; the numbers within a row are adjacent. It writes in the order (B, T, H, width), so
that the heads of a token are adjacent, as in the projections before and after.
"""

# B batch, H heads, T time

from torch import Tensor

CHUNK = 16  # tokens that a kernel processes together
LANES = 8  # numbers in a vector


def padded(width: int) -> int:
    """Round a width up to whole vectors."""
    return (width + LANES - 1) // LANES * LANES


def rows_of(x_BHTK: Tensor) -> Tensor:
    """Return a tensor whose rows have adjacent numbers: itself, or a copy."""
    if x_BHTK.stride(3) == 1 or x_BHTK.shape[3] == 1:
        return x_BHTK
    return x_BHTK.contiguous()


def by_heads(like_BHTK: Tensor, width: int) -> Tensor:
    """Return a new tensor (B, H, T, width) that lies in memory as (B, T, H, width)."""
    batch, heads, time = like_BHTK.shape[:3]
    return like_BHTK.new_empty(batch, time, heads, width).transpose(1, 2)

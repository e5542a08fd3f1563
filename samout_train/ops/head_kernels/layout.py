"""Lay out what the CPU's kernels of recurrences over matrices read and write.

A kernel reads rows at any distance, each of adjacent numbers. What it writes lies as (B, T, H, width), so that the
heads of a token are adjacent, as the projections before and after have them.
"""

# B batch, H heads, T time

from torch import Tensor

CHUNK = 16  # tokens that a kernel takes together
LANES = 8  # numbers of a vector


def padded(width: int) -> int:
    """Return a width of whole vectors."""
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

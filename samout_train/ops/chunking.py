"""Chunks of time, and the sums of log-decays over spans inside a chunk, which recurrences over matrices share.

A span's sum is made by adding its own terms, all at most 0, and never as a difference of two longer sums: nothing
cancels, only numbers of at most 1 come out of the exponential, and a term may be minus infinity. So a recurrence is
reset where its log-decay is minus infinity, exactly, with gradients that are exactly 0 across that token.
"""

# B batch, H heads, T time, N chunks, C tokens of a chunk, I and J tokens of the same chunk

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


@contextmanager
def without_autocast(device_type: str) -> Iterator[None]:
    """Keep what runs inside in the precision of its inputs: sums over time are too long for half precision."""
    with torch.autocast(device_type, enabled=False):
        yield


def widened(x: Tensor) -> Tensor:
    """Return a tensor in float32, or in float64 where it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def chunked(x_BHT: Tensor, size: int) -> Tensor:
    """Return (B, H, T, ...) in chunks, (B, H, N, C, ...), zeros behind the last token."""
    batch, heads, time = x_BHT.shape[:3]
    if missing := -time % size:
        x_BHT = F.pad(x_BHT, [0, 0] * (x_BHT.ndim - 3) + [0, missing])
    return x_BHT.reshape(batch, heads, -1, size, *x_BHT.shape[3:])


def span_decays(log_decay_BHNC: Tensor) -> Tensor:
    """Return (B, H, N, I, J): the decay over the tokens after j up to i, where j <= i, 1 on the diagonal; 0 elsewhere.

    There are no gradients of gradients.

    Source: Dao and Gu, Transformers are SSMs (arXiv 2405.21060), listing 1, `segsum`.
    """
    decays_BHNIJ: Tensor = _SpanDecays.apply(log_decay_BHNC)
    return decays_BHNIJ


class _SpanDecays(torch.autograd.Function):
    """A term of the token m is in the sums of all spans that begin before it and end at it or later."""

    @staticmethod
    def forward(ctx: Any, log_decay_BHNC: Tensor) -> Tensor:
        """Sum and exponentiate, in one piece of memory."""
        size = log_decay_BHNC.shape[-1]
        ones_IJ = torch.ones(size, size, dtype=torch.bool, device=log_decay_BHNC.device)
        sums_BHNIJ = log_decay_BHNC[..., None].where(ones_IJ.tril(-1), 0).cumsum(-2)
        decays_BHNIJ = sums_BHNIJ.masked_fill_(~ones_IJ.tril(), -torch.inf).exp_()
        ctx.save_for_backward(decays_BHNIJ)
        return decays_BHNIJ

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHNIJ: Tensor) -> Tensor:
        """Add up over the ends of spans by a product with ones, then over their beginnings."""
        (decays_BHNIJ,) = ctx.saved_tensors
        size = decays_BHNIJ.shape[-1]
        ones_IJ = decays_BHNIJ.new_ones(size, size)
        ended_BHNMJ = ones_IJ.triu() @ (grad_BHNIJ * decays_BHNIJ)
        return (ended_BHNMJ * ones_IJ.tril(-1)).sum(-1)

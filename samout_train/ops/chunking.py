"""Split time into chunks, and sum log-decays over spans inside a chunk, for all recurrences over matrices.

A span's sum adds the span's own terms, all at most 0; it is never the difference of two longer sums. So nothing
cancels, no exponential exceeds 1, and a term may be minus infinity. A log-decay of minus infinity resets the recurrence
exactly, and gradients across that token are exactly 0.
"""

# B batch, H heads, T time, N chunks, C tokens of a chunk, I, J and M tokens of the same chunk, K width of a key,
# V width of a value

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


@contextmanager
def without_autocast(device_type: str) -> Iterator[None]:
    """Disable autocast inside the context: sums over time are too long for half precision."""
    with torch.autocast(device_type, enabled=False):
        yield


def widened(x: Tensor) -> Tensor:
    """Return a tensor in float32, or unchanged if it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def chunked(x_BHT: Tensor, size: int) -> Tensor:
    """Return (B, H, T, ...) in chunks, (B, H, N, C, ...), with zeros after the last token."""
    batch, heads, time = x_BHT.shape[:3]
    if missing := -time % size:
        x_BHT = F.pad(x_BHT, [0, 0] * (x_BHT.ndim - 3) + [0, missing])
    return x_BHT.reshape(batch, heads, -1, size, *x_BHT.shape[3:])


def with_what_came_before(o_BHNCV: Tensor, q_BHNCK: Tensor, before: list[Tensor | None]) -> Tensor:
    """Add the values that queries read from the states before their chunks; the first state may be None.

    Reading zeros in the first of several chunks is less work than leaving it out.
    """
    begun = [state_BHKV for state_BHKV in before if state_BHKV is not None]
    if not begun:
        return o_BHNCV
    if len(begun) < len(before):
        begun = [torch.zeros_like(begun[0]), *begun]
    return o_BHNCV + q_BHNCK @ torch.stack(begun, dim=2)


def span_decays(log_decay_BHNC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the decays between the tokens of a chunk, since its start, and until its end.

    There is no second derivative.

    Source: Dao and Gu, Transformers are SSMs (arXiv 2405.21060), listing 1, `segsum`.

    Returns:
        (between_BHNIJ, since_BHNC, until_BHNC): between covers the tokens after j up to i for j <= i, which gives 1 on
            the diagonal, and is 0 elsewhere; since covers the tokens up to each one, until those after it.
    """
    decays: tuple[Tensor, Tensor, Tensor] = _SpanDecays.apply(log_decay_BHNC)
    return decays


class _SpanDecays(torch.autograd.Function):
    """Sum over spans: the term of token m is in all spans that begin before m and end at m or later."""

    @staticmethod
    def forward(ctx: Any, log_decay_BHNC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sum and exponentiate, in one piece of memory."""
        size = log_decay_BHNC.shape[-1]
        ones_IJ = torch.ones(size, size, dtype=torch.bool, device=log_decay_BHNC.device)
        sums_BHNIJ = log_decay_BHNC[..., None].where(ones_IJ.tril(-1), 0).cumsum(-2)
        between_BHNIJ = sums_BHNIJ.masked_fill_(~ones_IJ.tril(), -torch.inf).exp_()
        since_BHNC, until_BHNC = log_decay_BHNC.cumsum(-1).exp(), between_BHNIJ[..., -1, :].clone()
        ctx.save_for_backward(between_BHNIJ, since_BHNC, until_BHNC)
        return between_BHNIJ, since_BHNC, until_BHNC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_between: Tensor, grad_since: Tensor, grad_until: Tensor) -> Tensor:
        """Add up over the spans that begin before a token, then over those that also end at it or later."""
        between_BHNIJ, since_BHNC, until_BHNC = ctx.saved_tensors
        of_sums_BHNIJ = grad_between * between_BHNIJ
        of_sums_BHNIJ[..., -1, :].addcmul_(grad_until, until_BHNC)
        begun_BHNIM = of_sums_BHNIJ.cumsum_(-1)[..., :-1]  # of the token after j
        size = between_BHNIJ.shape[-1]
        ones_IM = torch.ones(size, size - 1, dtype=torch.bool, device=between_BHNIJ.device)
        of_later_tokens = begun_BHNIM.masked_fill_(~ones_IM.tril(-1), 0).sum(-2)
        return F.pad(of_later_tokens, [1, 0]) + (grad_since * since_BHNC).flip(-1).cumsum(-1).flip(-1)

"""Compute scores between the tokens of a chunk with one decay per channel: by halves of blocks, forward and backward.

A pair of tokens lies in the two halves of exactly one block of 2, 4, 8 ... tokens, and the log-decay between them is
the sum from the earlier one to the middle (`until`) plus the sum from the middle to the later one (`since`):

    Q' = Q_second exp(since);   K' = K_first exp(until);   O_second += (Q' K'^T) V_first

For blocks of twice the size these sums become longer: the second half adds the sum over the whole first half to its
`since`, and the first half adds that over the second to its `until`. The backward pass undoes this from the largest
block to the smallest. Everything is added up in place; only the exponentials of each size are kept.
"""

# C tokens of a chunk, S tokens of half a block, K width of a key, V width of a value, R all leading dimensions

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def read_by_halves(q_RCK: Tensor, k_RCK: Tensor, v_RCV: Tensor, log_decay_RCK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the values read, and the log-decays summed up to each token and from there to the end of the chunk.

    C is a power of two. There is no second derivative.
    """
    found: tuple[Tensor, Tensor, Tensor] = _ReadByHalves.apply(q_RCK, k_RCK, v_RCV, log_decay_RCK)
    return found


def _halves(x_RCK: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Return views of the first and the second halves of all blocks, (R, blocks, S, K)."""
    first, second = x_RCK.unflatten(-2, (-1, 2, half)).unbind(-3)
    return first, second


def _scores(q_SK: Tensor, k_SK: Tensor) -> Tensor:
    """Return Q K^T, for single tokens as a sum."""
    if q_SK.shape[-2] == 1:
        return (q_SK * k_SK).sum(-1, keepdim=True)
    return q_SK @ k_SK.transpose(-1, -2)


def _weighted(scores_SS: Tensor, v_SV: Tensor) -> Tensor:
    """Return the product of scores and values, for one or two tokens as a sum, which is less work."""
    if v_SV.shape[-2] > 2:
        return scores_SS @ v_SV
    total_SV = scores_SS[..., :1] * v_SV[..., :1, :]
    if v_SV.shape[-2] == 2:
        total_SV.addcmul_(scores_SS[..., 1:], v_SV[..., 1:, :])
    return total_SV


class _ReadByHalves(torch.autograd.Function):
    """The sums over blocks of all sizes."""

    @staticmethod
    def forward(
        ctx: Any, q_RCK: Tensor, k_RCK: Tensor, v_RCV: Tensor, log_decay_RCK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Go from blocks of two tokens to the whole chunk."""
        q_RCK, k_RCK, v_RCV = q_RCK.contiguous(), k_RCK.contiguous(), v_RCV.contiguous()
        o_RCV = (q_RCK * k_RCK).sum(-1, keepdim=True) * v_RCV
        since_RCK = log_decay_RCK.clone(memory_format=torch.contiguous_format)
        until_RCK = torch.zeros_like(since_RCK)
        half, decays = 1, []
        while half < q_RCK.shape[-2]:
            since_first, since_second = _halves(since_RCK, half)
            until_first, _ = _halves(until_RCK, half)
            decays += [since_second.exp(), until_first.exp()]
            scores_SS = _scores(_halves(q_RCK, half)[1] * decays[-2], _halves(k_RCK, half)[0] * decays[-1])
            _halves(o_RCV, half)[1].add_(_weighted(scores_SS, _halves(v_RCV, half)[0]))
            over_second = since_second[..., -1:, :].clone()
            since_second.add_(since_first[..., -1:, :])
            until_first.add_(over_second)
            half *= 2
        ctx.save_for_backward(q_RCK, k_RCK, v_RCV, *decays)
        return o_RCV, since_RCK, until_RCK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_o: Tensor, grad_since: Tensor, grad_until: Tensor) -> tuple[Tensor, ...]:
        """Go from the whole chunk to blocks of two tokens; gradients of sums turn into gradients of their terms."""
        q_RCK, k_RCK, v_RCV, *decays = ctx.saved_tensors
        grad_o = grad_o.contiguous()
        grad_since = grad_since.clone(memory_format=torch.contiguous_format)
        grad_until = grad_until.clone(memory_format=torch.contiguous_format)
        with_itself = (q_RCK * k_RCK).sum(-1, keepdim=True)
        of_itself = (grad_o * v_RCV).sum(-1, keepdim=True)
        grad_q, grad_k, grad_v = of_itself * k_RCK, of_itself * q_RCK, with_itself * grad_o
        half = q_RCK.shape[-2]
        while half > 1:
            half //= 2
            until_decay, since_decay = decays.pop(), decays.pop()
            since_first, since_second = _halves(grad_since, half)
            until_first, _ = _halves(grad_until, half)
            since_first[..., -1, :].add_(since_second.sum(-2))
            since_second[..., -1, :].add_(until_first.sum(-2))
            q_SK, k_SK = _halves(q_RCK, half)[1] * since_decay, _halves(k_RCK, half)[0] * until_decay
            o_SV, v_SV = _halves(grad_o, half)[1], _halves(v_RCV, half)[0]
            scores_SS, grad_SS = _scores(q_SK, k_SK), _scores(o_SV, v_SV)
            _halves(grad_v, half)[0].add_(_weighted(scores_SS.transpose(-1, -2), o_SV))
            of_q_SK, of_k_SK = _weighted(grad_SS, k_SK), _weighted(grad_SS.transpose(-1, -2), q_SK)
            _halves(grad_q, half)[1].addcmul_(of_q_SK, since_decay)
            _halves(grad_k, half)[0].addcmul_(of_k_SK, until_decay)
            since_second.addcmul_(of_q_SK, q_SK)
            until_first.addcmul_(of_k_SK, k_SK)
        return grad_q, grad_k, grad_v, grad_since

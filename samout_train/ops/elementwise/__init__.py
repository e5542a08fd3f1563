"""Elementwise parts of layers, which on CUDA read each input once and write each result once, in both directions.

    add_norm(x + dropout(branch), norm)    the residual sum and its RMSNorm or LayerNorm
    turned_heads(q, k)                     RMSNorm of the heads, and rotary positions
    minus_softplus(z)                      the decay of a maximum

Under autocast, the inputs of the next products are written in the products' precision, so that nothing is cast. Other
devices, and torch.compile, which fuses these by itself, run torch's own operations.
"""

# B batch, T time, D width, H heads, K width of a head

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.ops.elementwise import reference
from samout_train.ops.elementwise.reference import turned as turned
from samout_train.ops.kernels import is_fused, products_dtype

MOST_WIDTH = 2**14  # a program holds a whole position in registers
MOST_PAIRS = 512
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
DEVICES = {"cuda"}


class Residual(NamedTuple):
    """Hold the residual stream as a deferred sum, which the next norm computes.

    Args:
        x_BTD: The stream.
        branch_BTD: What a layer adds to it.
        dropout: Probability of dropping an element of the branch, by torch's random state.
    """

    x_BTD: Tensor
    branch_BTD: Tensor
    dropout: float


Stream = Tensor | Residual


def residual(x_BTD: Tensor, branch_BTD: Tensor, dropout: float = 0.0) -> Stream:
    """Return x + dropout(branch), as a deferred sum if `add_norm` has a kernel for it.

    Args:
        x_BTD: The residual stream.
        branch_BTD: What a layer adds to it.
        dropout: Probability of dropping an element of the branch; 0 outside training.
    """
    if _takes(x_BTD) and x_BTD.shape == branch_BTD.shape:
        return Residual(x_BTD, branch_BTD, dropout)
    return reference.added(x_BTD, branch_BTD, dropout)


def add_norm(stream: Stream, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the residual stream as a tensor, and its norm; a kernel writes the norm in the precision of products.

    Args:
        stream: The result of `residual`, or a tensor.
        norm: A norm over the last dimension; kernels take nn.LayerNorm and nn.RMSNorm with all their weights.
    """
    x_BTD, branch_BTD, dropout = stream if isinstance(stream, Residual) else (stream, None, 0.0)
    if not (_takes(x_BTD) and _takes_norm(norm)):
        return reference.added_and_normalised(x_BTD, branch_BTD, dropout, norm)
    from samout_train.ops.elementwise import operator

    if branch_BTD is not None:
        branch_BTD = branch_BTD.contiguous()
    seed = torch.empty((), dtype=torch.int64, device=x_BTD.device)  # nothing reads it
    if dropout:
        seed = torch.randint(2**62, (), device=x_BTD.device)
    weights = (norm.weight, getattr(norm, "bias", None))
    return operator.add_norm(x_BTD.contiguous(), branch_BTD, *weights, _eps(norm), dropout, seed, products_dtype(x_BTD))


def turned_heads(
    q_BHTK: Tensor, k_BHTK: Tensor, q_norm: nn.Module | None = None, k_norm: nn.Module | None = None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return queries and keys after their norms, turned by positions from 0, and the keys before turning.

    Args:
        q_BHTK: Queries.
        k_BHTK: Keys.
        q_norm: The norm of a head of queries; None for no norms.
        k_norm: The norm of a head of keys.

    Returns:
        None if no kernel supports the inputs: then apply the norms and `turned`.
    """
    if not (
        _takes(q_BHTK, FLOATS)
        and q_BHTK.shape == k_BHTK.shape
        and q_BHTK.dtype == k_BHTK.dtype
        and q_BHTK.stride(-1) == k_BHTK.stride(-1) == 1
        and q_BHTK.shape[-1] % 2 == 0
        and q_BHTK.shape[-1] <= 2 * MOST_PAIRS
    ):
        return None
    weights: tuple[Tensor | None, Tensor | None] = (None, None)
    eps = 0.0
    if isinstance(q_norm, nn.RMSNorm) and isinstance(k_norm, nn.RMSNorm):
        if not (_takes_norm(q_norm) and _takes_norm(k_norm) and _eps(q_norm) == _eps(k_norm)):
            return None
        weights, eps = (q_norm.weight, k_norm.weight), _eps(q_norm)
    elif q_norm is not None or k_norm is not None:
        return None
    from samout_train.ops.elementwise import operator

    q_BTHK, k_BTHK, plain_BTHK = operator.turn(q_BHTK.transpose(1, 2), k_BHTK.transpose(1, 2), *weights, eps)
    plain_BHTK = k_BHTK
    if weights[1] is not None:
        plain_BHTK = plain_BTHK.transpose(1, 2)
    return q_BTHK.transpose(1, 2), k_BTHK.transpose(1, 2), plain_BHTK


def minus_softplus(z_BTD: Tensor) -> Tensor:
    """Return -softplus(z), at most 0; a kernel returns it in the precision of z, autocast in float32."""
    if not _takes(z_BTD, FLOATS):
        return -F.softplus(z_BTD)
    from samout_train.ops.elementwise import operator

    return operator.minus_softplus(z_BTD.contiguous())


def _takes(x: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> bool:
    return (
        x.device.type in DEVICES
        and x.dtype in dtypes
        and x.numel() > 0
        and x.shape[-1] <= MOST_WIDTH
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and is_fused(x.device.type, x.dtype)
    )


def _takes_norm(norm: nn.Module) -> bool:
    if isinstance(norm, nn.LayerNorm):
        return len(norm.normalized_shape) == 1 and norm.bias is not None and norm.weight.dtype == torch.float32
    if not isinstance(norm, nn.RMSNorm) or len(norm.normalized_shape) != 1 or norm.weight is None:
        return False
    return norm.eps is not None and norm.weight.dtype == torch.float32


def _eps(norm: nn.Module) -> float:
    eps: float = norm.eps  # type: ignore[assignment]
    return eps

"""Fused elementwise operations of a SamOut layer, which read each input once and write each result once.

    gate(up, gate) = up * relu(gate); on CUDA also up * silu(gate), of SwiGLU
    blend(f, x)    = LayerNorm(alpha * dropout(f) + (1 - alpha) * x) + x; on CUDA also in the precision of products

`step` runs one token through a whole layer in one kernel, whose time is that of reading the weights.
"""

# B batch, T time, D width, F inner width

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.ops.kernels import is_fused, products_dtype

# Measured on two cores: with fewer elements, the overhead of an operator exceeds its gain.
LEAST_ELEMENTS = {"cpu": 2**17, "cuda": 1}
FUSED = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.float32, torch.bfloat16, torch.float16)}
MOST_WIDTH = 2**14  # of a blend: a program on CUDA holds a whole position in registers
MOST_ROWS = 8  # rows of a step; with more, matrix products are faster
COPIES = {"cuda"}  # elsewhere products under autocast cast their inputs


class Blended(NamedTuple):
    """Hold a blend in two precisions, both written by one kernel.

    Args:
        x_BTD: In float32, for the next residual connection.
        products_BTD: In the precision of autocast, for products.
    """

    x_BTD: Tensor
    products_BTD: Tensor


def gated(up_BTF: Tensor, gate_BTF: Tensor) -> Tensor:
    """Return up * relu(gate)."""
    if not _takes(up_BTF, gate_BTF):
        return gated_reference(up_BTF, gate_BTF)
    from samout_train.ops.samout_layer import operator

    return operator.gated(up_BTF.contiguous(), gate_BTF.contiguous())


def gated_halves(packed_BTP: Tensor, *, silu: bool = False) -> Tensor:
    """Return `gated` of up and gate, which lie side by side; CUDA reads them in place.

    Args:
        packed_BTP: (B, T, 2 F).
        silu: Whether the result is up * silu(gate), as in SwiGLU.
    """
    if packed_BTP.device.type != "cuda" or not _takes(packed_BTP):
        up_BTF, gate_BTF = packed_BTP.chunk(2, dim=-1)
        return up_BTF * F.silu(gate_BTF) if silu else gated(up_BTF, gate_BTF)
    from samout_train.ops.samout_layer import operator

    return operator.gated_halves(packed_BTP.contiguous(), silu)


def blended(f_BTD: Tensor, x_BTD: Tensor, alpha: Tensor, norm: nn.LayerNorm, dropout: float) -> Tensor | Blended:
    """Return LayerNorm(alpha * dropout(f) + (1 - alpha) * x) + x; under autocast on CUDA, in both precisions.

    Args:
        f_BTD: The feed-forward's output, in the precision of the matrix products.
        x_BTD: The layer's input.
        alpha: A scalar.
        norm: A norm over the last dimension, with weight and bias.
        dropout: Probability of dropping an element of f, by torch's random state; 0 outside training.
    """
    if not (_takes(f_BTD) and x_BTD.dtype == torch.float32 and x_BTD.shape[-1] <= MOST_WIDTH):
        return blended_reference(f_BTD, x_BTD, alpha, norm.weight, norm.bias, norm.eps, dropout)
    from samout_train.ops.samout_layer import operator

    device = x_BTD.device
    if dropout:
        seed = torch.randint(2**62, (), device=device)
    elif device.type == "cpu":
        seed = torch.tensor(0)
    else:
        seed = torch.empty((), dtype=torch.int64, device=device)  # nothing reads it
    dtype = products_dtype(x_BTD)
    copy = dtype if dtype != x_BTD.dtype and device.type in COPIES else None
    parameters = (alpha, norm.weight, norm.bias)
    y_BTD, copy_BTD = operator.blended(
        f_BTD.contiguous(), x_BTD.contiguous(), *parameters, norm.eps, dropout, seed, copy
    )
    return y_BTD if copy is None else Blended(y_BTD, copy_BTD)


def gated_reference(up_BTF: Tensor, gate_BTF: Tensor) -> Tensor:
    """Return `gated` by torch's own operations."""
    return up_BTF * F.relu(gate_BTF)


def blended_reference(
    f_BTD: Tensor, x_BTD: Tensor, alpha: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, dropout: float
) -> Tensor:
    """Return `blended` by torch's own operations."""
    z_BTD = alpha * F.dropout(f_BTD, dropout) + (1 - alpha) * x_BTD
    return F.layer_norm(z_BTD, weight_D.shape, weight_D, bias_D, eps) + x_BTD


def dropping(dropout: float) -> tuple[float, int]:
    """Return the factor of elements that dropout keeps, and the threshold below which 32 random bits drop one."""
    kept = 0.0
    if dropout < 1:
        kept = 1 / (1 - dropout)
    return kept, min(round(dropout * 2**32), 2**32 - 1)


def takes_step(x_BTD: Tensor) -> bool:
    """Return whether `step` supports this input: one token of a few sequences, float32 on a CPU, no gradients."""
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and x_BTD.shape[1] == 1
        and x_BTD.shape[0] <= MOST_ROWS
        and x_BTD.dtype == torch.float32
        and x_BTD.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and is_fused("cpu", torch.float32)
    )


def step(x_BD: Tensor, state_BD: Tensor, *of_layer: Any) -> tuple[Tensor, Tensor]:
    """Return the layer's output and its next state; see `samout_step`. Needs numba."""
    from samout_train.ops.samout_layer.cpu_step import samout_step

    return samout_step(x_BD, state_BD, *of_layer)


def _takes(*tensors: Tensor) -> bool:
    first = tensors[0]
    device = first.device.type
    if device not in LEAST_ELEMENTS or first.numel() < LEAST_ELEMENTS[device]:
        return False
    return (
        first.dtype in FUSED[device]
        and all(tensor.dtype == first.dtype for tensor in tensors)
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and is_fused(device, first.dtype)
    )

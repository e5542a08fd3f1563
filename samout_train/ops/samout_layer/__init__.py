"""What a SamOut layer does beside matrix products and its mixer, each input read once and each result written once.

gate(up, gate) = up * relu(gate)
blend(f, x)    = LayerNorm(alpha * dropout(f) + (1 - alpha) * x) + x
"""

# B batch, T time, D width, F inner width

import torch
from torch import Tensor, nn

from samout_train.ops.kernels import is_fused
from samout_train.ops.samout_layer import reference

# Measured on two cores: with fewer elements the operators themselves take longer than what they save.
LEAST_ELEMENTS = 2**17


def gated(up_BTF: Tensor, gate_BTF: Tensor) -> Tensor:
    """up * relu(gate).

    Args:
        up_BTF: What is gated.
        gate_BTF: The gate, of the same shape and dtype.
    """
    if not _takes(up_BTF, gate_BTF):
        return reference.gated(up_BTF, gate_BTF)
    from samout_train.ops.samout_layer import operator

    return operator.gated(up_BTF.contiguous(), gate_BTF.contiguous())


def blended(f_BTD: Tensor, x_BTD: Tensor, alpha: Tensor, norm: nn.LayerNorm, dropout: float) -> Tensor:
    """LayerNorm(alpha * dropout(f) + (1 - alpha) * x) + x.

    Args:
        f_BTD: The feed-forward's output, in the precision of the products.
        x_BTD: The layer's input.
        alpha: A scalar.
        norm: Over the last dimension, with weight and bias.
        dropout: The share of f that is dropped; 0 outside training. Which elements, torch's random state decides.
    """
    if not (_takes(f_BTD) and x_BTD.dtype == torch.float32):
        return reference.blended(f_BTD, x_BTD, alpha, norm.weight, norm.bias, norm.eps, dropout)
    from samout_train.ops.samout_layer import operator

    seed = torch.randint(2**62, ()) if dropout else torch.tensor(0)
    parameters = (alpha, norm.weight, norm.bias)
    return operator.blended(f_BTD.contiguous(), x_BTD.contiguous(), *parameters, norm.eps, dropout, seed)[0]


def _takes(*tensors: Tensor) -> bool:
    first = tensors[0]
    return (
        first.device.type == "cpu"
        and first.numel() >= LEAST_ELEMENTS
        and first.dtype in (torch.float32, torch.bfloat16)
        and all(tensor.dtype == first.dtype for tensor in tensors)
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and is_fused("cpu", first.dtype)
    )

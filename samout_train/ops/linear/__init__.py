"""Run linear layers by torch, or by a library that handles float32 matrices faster on this CPU.

The choice holds for the whole process and starts as torch everywhere. numba (cpu.py) is the alternative for a few rows,
oneDNN for many. On two cores of an AMD EPYC (Zen 4), products of 4,900 rows with matrices of 384 x 384 to 1,152 x 384
ran at 133 to 138 GFLOP/s in MKL and 189 to 203 in oneDNN; products for the gradient of the weights ran at 163 to 166 in
MKL and 141 to 147 in oneDNN.
"""

# M rows, N outputs, K inputs

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from samout_train.ops.kernels import is_fused, only_torch
from samout_train.ops.linear.copies import (
    Stack as Stack,
    WeightCopies as WeightCopies,
    copies_weights as copies_weights,
    copy_of as copy_of,
    found_copy as found_copy,
    stacked_linear as stacked_linear,
    weight_copies as weight_copies,
)

MANY, FEW = ("torch", "onednn"), ("torch", "numba")
# For 256 x 256 weights or larger and up to 8 rows, torch.nn.functional.linear (MKL) took 2 to 10 times as long as numba
# on two cores of an AMD EPYC, and less for smaller weights or more rows; on an Intel Xeon it took 0.2 to 0.8 times as
# long. The choice therefore needs a measurement (samout_train.models.products).
MOST_ROWS = 8
LEAST_WEIGHTS = 65_536
# Multiplications above which oneDNN's gain exceeds the overhead of the call: it did for 2,048 x 240 by 240 x 240 (4 %
# of a step), not for 768 x 128 by 128 x 128.
LEAST_PRODUCTS = 2**26


def linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """Return x W^T + b like torch.nn.functional.linear; the order of a sum may differ.

    Large products in oneDNN have no second derivative.

    Args:
        x: Input of shape (..., K).

    Returns:
        (..., N), in the dtype of torch.nn.functional.linear.
    """
    if (copy := found_copy(x, weight_NK)) is not None:
        return stacked_linear(x, copy)
    if not _is_plain_float32_on_cpu(x, weight_NK):
        return F.linear(x, weight_NK, bias_N)
    if _is_a_matter_of_reading(x, weight_NK):
        from samout_train.ops.linear.cpu import few_rows

        return few_rows(x, weight_NK, bias_N)
    is_large = x.numel() * len(weight_NK) >= LEAST_PRODUCTS
    if is_large and chosen_products().many == "onednn" and not only_torch() and has_onednn():
        return many_rows(x, weight_NK, bias_N)
    return F.linear(x, weight_NK, bias_N)


def _is_plain_float32_on_cpu(x: Tensor, weight_NK: Tensor) -> bool:
    return (
        x.dtype == weight_NK.dtype == torch.float32
        and x.device.type == weight_NK.device.type == "cpu"
        and x.numel() > 0
        and x.shape[-1] == weight_NK.shape[1]
        and weight_NK.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _is_a_matter_of_reading(x: Tensor, weight_NK: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and x.numel() <= MOST_ROWS * weight_NK.shape[1]
        and weight_NK.numel() >= LEAST_WEIGHTS
        and chosen_products().few == "numba"
        and is_fused("cpu", torch.float32)
    )


def linear_into(out_MN: Tensor, x_MK: Tensor, weight_NK: Tensor) -> None:
    """Fill a matrix with x W^T, computed like `linear` but without gradients; all three tensors have one dtype."""
    if chosen_products().many == "onednn" and _is_plain_float32_on_cpu(x_MK, weight_NK) and has_onednn():
        out_MN.copy_(linear(x_MK, weight_NK))
    else:
        torch.mm(x_MK, weight_NK.t(), out=out_MN)


def add_product(total_MN: Tensor, left_MK: Tensor, right_KN: Tensor) -> None:
    """Add a product of matrices to a matrix, which may be in a wider dtype; without gradients."""
    if total_MN.dtype == left_MK.dtype:
        total_MN.addmm_(left_MK, right_KN)
    else:
        total_MN += left_MK @ right_KN


@dataclass(frozen=True)
class Products:
    """The libraries for matrix products.

    Args:
        many: For large products of many rows: `torch` (mostly MKL) or `onednn`.
        few: For products of a few rows with large matrices, without gradients: `torch` or `numba`.
    """

    many: str = "torch"
    few: str = "torch"

    @classmethod
    def of(cls, text: str) -> "Products":
        """Parse the text that `str` returns.

        Raises:
            ValueError: for any other text.
        """
        many, _, few = text.partition(",")
        if many not in MANY or few not in FEW:
            raise ValueError("must be torch or onednn, a comma, and torch or numba, such as torch,torch")
        return cls(many, few)

    def __str__(self) -> str:
        return f"{self.many},{self.few}"


_chosen: Products | None = None


def use_products(products: Products | None) -> None:
    """Set the choice for the whole process; None unsets it."""
    global _chosen
    _chosen = products


def chosen_products() -> Products:
    """Return the choice of the process; torch for both if none is set."""
    return _chosen or Products()


def is_decided() -> bool:
    """Return whether a choice is set."""
    return _chosen is not None


def has_onednn() -> bool:
    """Return whether torch has oneDNN and would use MKL instead."""
    return bool(torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available())


def many_rows(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """Return x W^T + b in oneDNN for float32 x of shape (..., K), with a first derivative only."""
    y_MN: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight_NK, bias_N)
    return y_MN.view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        """Return x W^T + b."""
        context.save_for_backward(x_MK, weight_NK)
        return _product(x_MK, weight_NK, bias_N)

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad_MN: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, W and b."""
        x_MK, weight_NK = context.saved_tensors
        grad_MN = grad_MN.contiguous()
        for_x, for_weight, for_bias = context.needs_input_grad
        grad_x_MK = grad_weight_NK = grad_bias_N = None
        if for_x:
            grad_x_MK = _product(grad_MN, weight_NK.t(), None)
        if for_weight:
            grad_weight_NK = grad_MN.t() @ x_MK
        if for_bias:
            grad_bias_N = grad_MN.sum(0)
        return grad_x_MK, grad_weight_NK, grad_bias_N


def _product(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x_MK, weight_NK, bias_N, "none", [], "")
    return product

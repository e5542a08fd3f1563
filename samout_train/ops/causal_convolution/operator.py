"""Register the fused causal convolution as a torch operator. There is no second derivative."""

# B batch, T time, S time of the input, D width, K rows that an output takes together

from typing import Any

import torch
from torch import Tensor

from samout_train.ops.kernels import is_traced, kernels_of, without_library


def convolve(*given: Any) -> Tensor:
    """Return the convolution of inputs in the order of `_convolve`."""
    compute = _convolve if is_traced(given[0]) else _Convolve.apply
    y_BTD: Tensor = compute(*given)
    return y_BTD


@torch.library.custom_op("samout_train::convolve", mutates_args=())
def _convolve(
    x_BSD: Tensor, weight_DK: Tensor, bias_D: Tensor | None, silu: bool, time: int, dtype: torch.dtype
) -> Tensor:
    """Return (B, T, D) in `dtype`; the first S - T rows of x precede the first output."""
    return _forward(x_BSD, weight_DK, bias_D, silu, time, dtype)


def _forward(*given: Any) -> Tensor:
    y_BTD = _output(*given)
    kernels_of(__package__, y_BTD).convolve(*given[:4], y_BTD)
    return y_BTD


@_convolve.register_fake
def _output(
    x_BSD: Tensor, weight_DK: Tensor, bias_D: Tensor | None, silu: bool, time: int, dtype: torch.dtype
) -> Tensor:
    return x_BSD.new_empty(len(x_BSD), time, x_BSD.shape[2], dtype=dtype)


@torch.library.custom_op("samout_train::convolve_backward", mutates_args=())
def _convolve_backward(
    x_BSD: Tensor, weight_DK: Tensor, bias_D: Tensor | None, silu: bool, grad_BTD: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x, and of weight and bias one after the other, (K + 1) D."""
    return _gradients(x_BSD, weight_DK, bias_D, silu, grad_BTD)


def _gradients(*given: Any) -> tuple[Tensor, Tensor]:
    grads = _gradient_outputs(*given)
    kernels_of(__package__, given[0]).convolve_gradients(*given, *grads)
    return grads


@_convolve_backward.register_fake
def _gradient_outputs(
    x_BSD: Tensor, weight_DK: Tensor, bias_D: Tensor | None, silu: bool, grad_BTD: Tensor
) -> tuple[Tensor, Tensor]:
    width, size = weight_DK.shape
    return x_BSD.new_empty(tuple(x_BSD.shape)), weight_DK.new_empty((size + 1) * width)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.silu, _, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_BTD: Tensor) -> tuple[Any, ...]:
    x_BSD, weight_DK, bias_D = ctx.saved_tensors
    compute = _convolve_backward if is_traced(x_BSD) else _gradients
    grad_x_BSD, grad_weights = compute(x_BSD, weight_DK, bias_D, ctx.silu, grad_BTD.contiguous())
    grad_weight, grad_bias_D = grad_weights.split([weight_DK.numel(), len(weight_DK)])
    if bias_D is None:
        grad_bias_D = None
    return grad_x_BSD, grad_weight.view_as(weight_DK), grad_bias_D, None, None, None


_convolve.register_autograd(_backward, setup_context=_keep)


_Convolve = without_library(_forward, _keep, _backward)

"""The fused scan as a torch operator, so that autograd and torch.compile know it. There is no second derivative."""

# B batch, T time, D width

from typing import Any

import torch
from torch import Tensor


def fused_linear_scan(a_BTD: Tensor, x_BTD: Tensor, state_BD: Tensor) -> Tensor:
    """See samout_train.ops.linear_scan.linear_scan; all float32."""
    given = (a_BTD.contiguous(), x_BTD.contiguous(), state_BD.contiguous())
    # Where nobody asks for gradients the kernel is called as it is: an operator makes torch import its compiler.
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        h_BTD: Tensor = _linear_scan(*given)
        return h_BTD
    return _forward(*given)


def _forward(a_BTD: Tensor, x_BTD: Tensor, state_BD: Tensor) -> Tensor:
    from samout_train.ops.linear_scan import cpu

    h_BTD = torch.empty_like(x_BTD)
    cpu.forward(a_BTD, x_BTD, state_BD, h_BTD)
    return h_BTD


@torch.library.custom_op("samout_train::linear_scan", mutates_args=())
def _linear_scan(a_BTD: Tensor, x_BTD: Tensor, state_BD: Tensor) -> Tensor:
    """Return h of all tokens."""
    return _forward(a_BTD, x_BTD, state_BD)


@_linear_scan.register_fake
def _(a_BTD: Tensor, x_BTD: Tensor, state_BD: Tensor) -> Tensor:
    return torch.empty_like(x_BTD)


@torch.library.custom_op("samout_train::linear_scan_backward", mutates_args=())
def _linear_scan_backward(
    a_BTD: Tensor, h_BTD: Tensor, state_BD: Tensor, grad_h_BTD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a, x and the state."""
    from samout_train.ops.linear_scan import cpu

    grads = (torch.empty_like(h_BTD), torch.empty_like(h_BTD), torch.empty_like(state_BD))
    cpu.backward(a_BTD, h_BTD, state_BD, grad_h_BTD, *grads)
    return grads


@_linear_scan_backward.register_fake
def _(a_BTD: Tensor, h_BTD: Tensor, state_BD: Tensor, grad_h_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(h_BTD), torch.empty_like(h_BTD), torch.empty_like(state_BD)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a_BTD, _, state_BD = inputs
    ctx.save_for_backward(a_BTD, output, state_BD)


def _backward(ctx: Any, grad_h_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a_BTD, h_BTD, state_BD = ctx.saved_tensors
    grads: tuple[Tensor, Tensor, Tensor] = _linear_scan_backward(a_BTD, h_BTD, state_BD, grad_h_BTD.contiguous())
    return grads


_linear_scan.register_autograd(_backward, setup_context=_setup_context)

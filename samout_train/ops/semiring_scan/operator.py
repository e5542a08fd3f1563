"""Register the fused scan as a torch operator, for autograd and torch.compile. There is no second derivative."""

# B batch, T time, D width

from typing import Any

import torch
from torch import Tensor

from samout_train.ops.kernels import is_traced, kernels_of, without_library
from samout_train.ops.semiring_scan.reference import Semiring


def fused_scan(a_BTD: Tensor, x_BTD: Tensor, state_BD: Tensor, semiring: Semiring) -> Tensor:
    """See samout_train.ops.semiring_scan.semiring_scan; without max_plus, and all in float32."""
    given = (a_BTD.contiguous(), x_BTD.contiguous(), state_BD.contiguous(), semiring)
    if not (is_traced(x_BTD) or torch.is_grad_enabled()):
        return _forward(*given)
    compute = _scan if is_traced(x_BTD) else _Scan.apply
    h_BTD: Tensor = compute(*given)
    return h_BTD


def _forward(a_BTD: Tensor, x_BTD: Tensor, state_BD: Tensor, semiring: str) -> Tensor:
    h_BTD = torch.empty_like(x_BTD)
    kernels_of(__package__, x_BTD).forward(a_BTD, x_BTD, state_BD, semiring, h_BTD)
    return h_BTD


@torch.library.custom_op("samout_train::semiring_scan", mutates_args=())
def _scan(a_BTD: Tensor, x_BTD: Tensor, state_BD: Tensor, semiring: str) -> Tensor:
    """Return h of all tokens."""
    return _forward(a_BTD, x_BTD, state_BD, semiring)


@_scan.register_fake
def _(a_BTD: Tensor, x_BTD: Tensor, state_BD: Tensor, semiring: str) -> Tensor:
    return torch.empty_like(x_BTD)


@torch.library.custom_op("samout_train::semiring_scan_backward", mutates_args=())
def _scan_backward(
    a_BTD: Tensor, x_BTD: Tensor, h_BTD: Tensor, state_BD: Tensor, semiring: str, grad_h_BTD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a, x and the state."""
    return _backward_by_kernel(a_BTD, x_BTD, h_BTD, state_BD, semiring, grad_h_BTD)


def _backward_by_kernel(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    grads = _gradients(*given)
    kernels_of(__package__, given[0]).backward(*given, *grads)
    return grads


@_scan_backward.register_fake
def _gradients(
    a_BTD: Tensor, x_BTD: Tensor, h_BTD: Tensor, state_BD: Tensor, semiring: str, grad_h_BTD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(h_BTD), torch.empty_like(h_BTD), torch.empty_like(state_BD)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a_BTD, x_BTD, state_BD, ctx.semiring = inputs
    if ctx.semiring == "plus_times":
        x_BTD = output  # x is not read, so it is not kept
    ctx.save_for_backward(a_BTD, x_BTD, output, state_BD)


def _backward(ctx: Any, grad_h_BTD: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    compute = _scan_backward if is_traced(saved[0]) else _backward_by_kernel
    return *compute(*saved, ctx.semiring, grad_h_BTD.contiguous()), None


_scan.register_autograd(_backward, setup_context=_setup_context)


_Scan = without_library(_forward, _setup_context, _backward)

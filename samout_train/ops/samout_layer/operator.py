"""Register the fused parts of a SamOut layer as torch operators. There is no second derivative."""

# B batch, T time, D width, F inner width

from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("samout_train::gated", mutates_args=())
def gated(up_BTF: Tensor, gate_BTF: Tensor) -> Tensor:
    """Return samout_train.ops.samout_layer.gated of contiguous tensors."""
    y_BTF = torch.empty_like(up_BTF)
    _kernels(up_BTF).gate(up_BTF, gate_BTF, y_BTF)
    return y_BTF


@gated.register_fake
def _(up_BTF: Tensor, gate_BTF: Tensor) -> Tensor:
    return torch.empty_like(up_BTF)


@torch.library.custom_op("samout_train::gated_backward", mutates_args=())
def _gated_backward(up_BTF: Tensor, gate_BTF: Tensor, grad_BTF: Tensor) -> tuple[Tensor, Tensor]:
    grads = torch.empty_like(up_BTF), torch.empty_like(gate_BTF)
    _kernels(up_BTF).gate_gradients(up_BTF, gate_BTF, grad_BTF, *grads)
    return grads


@_gated_backward.register_fake
def _(up_BTF: Tensor, gate_BTF: Tensor, grad_BTF: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(up_BTF), torch.empty_like(gate_BTF)


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _through_gate(ctx: Any, grad_BTF: Tensor) -> tuple[Tensor, Tensor]:
    grads: tuple[Tensor, Tensor] = _gated_backward(*ctx.saved_tensors, grad_BTF.contiguous())
    return grads


gated.register_autograd(_through_gate, setup_context=_keep_inputs)


@torch.library.custom_op("samout_train::gated_halves", mutates_args=())
def gated_halves(packed_BTP: Tensor) -> Tensor:
    """Return samout_train.ops.samout_layer.gated_halves of a contiguous tensor; CUDA alone has a kernel."""
    y_BTF = _half_of(packed_BTP)
    _kernels(packed_BTP).gate(*packed_BTP.chunk(2, dim=-1), y_BTF, halves=True)
    return y_BTF


@gated_halves.register_fake
def _half_of(packed_BTP: Tensor) -> Tensor:
    return packed_BTP.new_empty(*packed_BTP.shape[:-1], packed_BTP.shape[-1] // 2)


@torch.library.custom_op("samout_train::gated_halves_backward", mutates_args=())
def _gated_halves_backward(packed_BTP: Tensor, grad_BTF: Tensor) -> Tensor:
    grad_BTP = torch.empty_like(packed_BTP)
    given = (*packed_BTP.chunk(2, dim=-1), grad_BTF, *grad_BTP.chunk(2, dim=-1))
    _kernels(packed_BTP).gate_gradients(*given, halves=True)
    return grad_BTP


@_gated_halves_backward.register_fake
def _(packed_BTP: Tensor, grad_BTF: Tensor) -> Tensor:
    return torch.empty_like(packed_BTP)


def _through_halves(ctx: Any, grad_BTF: Tensor) -> Tensor:
    grad_BTP: Tensor = _gated_halves_backward(*ctx.saved_tensors, grad_BTF.contiguous())
    return grad_BTP


gated_halves.register_autograd(_through_halves, setup_context=_keep_inputs)


@torch.library.custom_op("samout_train::blended", mutates_args=())
def blended(
    f_BTD: Tensor,
    x_BTD: Tensor,
    alpha: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    eps: float,
    dropout: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return y (B, T, D) and, for the backward pass, mean and inverse standard deviation of each position (2, B T)."""
    y_BTD, statistics = torch.empty_like(x_BTD), x_BTD.new_empty(2, x_BTD.numel() // x_BTD.shape[-1])
    _kernels(x_BTD).blend(f_BTD, x_BTD, alpha, weight_D, bias_D, eps, dropout, seed, y_BTD, statistics)
    return y_BTD, statistics


@blended.register_fake
def _(
    f_BTD: Tensor,
    x_BTD: Tensor,
    alpha: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    eps: float,
    dropout: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_BTD), x_BTD.new_empty(2, x_BTD.numel() // x_BTD.shape[-1])


@torch.library.custom_op("samout_train::blended_backward", mutates_args=())
def _blended_backward(
    f_BTD: Tensor,
    x_BTD: Tensor,
    alpha: Tensor,
    weight_D: Tensor,
    statistics: Tensor,
    dropout: float,
    seed: Tensor,
    grad_BTD: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of f, of x, and of weight, bias and alpha in one tensor (2 D + 1)."""
    grads = _blended_gradients(f_BTD, x_BTD, alpha, weight_D, statistics, dropout, seed, grad_BTD)
    _kernels(x_BTD).blend_gradients(f_BTD, x_BTD, alpha, weight_D, statistics, dropout, seed, grad_BTD, *grads)
    return grads


@_blended_backward.register_fake
def _blended_gradients(
    f_BTD: Tensor,
    x_BTD: Tensor,
    alpha: Tensor,
    weight_D: Tensor,
    statistics: Tensor,
    dropout: float,
    seed: Tensor,
    grad_BTD: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(f_BTD), torch.empty_like(x_BTD), x_BTD.new_empty(2 * x_BTD.shape[-1] + 1)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    f_BTD, x_BTD, alpha, weight_D, _, _, ctx.dropout, seed = inputs
    ctx.save_for_backward(f_BTD, x_BTD, alpha, weight_D, output[1], seed)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # or zeros are made for the statistics


def _through_blend(ctx: Any, grad_BTD: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *saved, seed = ctx.saved_tensors
    alpha, width = saved[2], saved[3].numel()
    grad_f_BTD, grad_x_BTD, others = _blended_backward(*saved, ctx.dropout, seed, grad_BTD.contiguous())
    grad_weight_D, grad_bias_D, grad_alpha = others.split([width, width, 1])
    return grad_f_BTD, grad_x_BTD, grad_alpha.view(alpha.shape), grad_weight_D, grad_bias_D, None, None, None


blended.register_autograd(_through_blend, setup_context=_keep)


def _kernels(tensor: Tensor) -> ModuleType:
    return import_module(f"samout_train.ops.samout_layer.{tensor.device.type}")

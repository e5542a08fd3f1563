"""Register the fused parts of a SamOut layer as torch operators. There is no second derivative."""

# B batch, T time, D width, F inner width

from typing import Any

import torch
from torch import Tensor

from samout_train.ops.kernels import is_traced, kernels_of, without_library


def gated(up_BTF: Tensor, gate_BTF: Tensor) -> Tensor:
    """Return samout_train.ops.samout_layer.gated of contiguous tensors."""
    compute = _gated if is_traced(up_BTF) else _Gated.apply
    y_BTF: Tensor = compute(up_BTF, gate_BTF)
    return y_BTF


@torch.library.custom_op("samout_train::gated", mutates_args=())
def _gated(up_BTF: Tensor, gate_BTF: Tensor) -> Tensor:
    return _gate_forward(up_BTF, gate_BTF)


def _gate_forward(up_BTF: Tensor, gate_BTF: Tensor) -> Tensor:
    y_BTF = torch.empty_like(up_BTF)
    kernels_of(__package__, up_BTF).gate(up_BTF, gate_BTF, y_BTF)
    return y_BTF


@_gated.register_fake
def _(up_BTF: Tensor, gate_BTF: Tensor) -> Tensor:
    return torch.empty_like(up_BTF)


@torch.library.custom_op("samout_train::gated_backward", mutates_args=())
def _gated_backward(up_BTF: Tensor, gate_BTF: Tensor, grad_BTF: Tensor) -> tuple[Tensor, Tensor]:
    return _gate_gradients(up_BTF, gate_BTF, grad_BTF)


def _gate_gradients(up_BTF: Tensor, gate_BTF: Tensor, grad_BTF: Tensor) -> tuple[Tensor, Tensor]:
    grads = torch.empty_like(up_BTF), torch.empty_like(gate_BTF)
    kernels_of(__package__, up_BTF).gate_gradients(up_BTF, gate_BTF, grad_BTF, *grads)
    return grads


@_gated_backward.register_fake
def _(up_BTF: Tensor, gate_BTF: Tensor, grad_BTF: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(up_BTF), torch.empty_like(gate_BTF)


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _through_gate(ctx: Any, grad_BTF: Tensor) -> tuple[Tensor, Tensor]:
    compute = _gated_backward if is_traced(grad_BTF) else _gate_gradients
    up_BTF, gate_BTF = ctx.saved_tensors
    grads: tuple[Tensor, Tensor] = compute(up_BTF, gate_BTF, grad_BTF.contiguous())
    return grads


_gated.register_autograd(_through_gate, setup_context=_keep_inputs)


_Gated = without_library(_gate_forward, _keep_inputs, _through_gate)


def gated_halves(packed_BTP: Tensor, silu: bool) -> Tensor:
    """Return samout_train.ops.samout_layer.gated_halves of a contiguous tensor; only CUDA has a kernel."""
    compute = _gated_halves if is_traced(packed_BTP) else _GatedHalves.apply
    y_BTF: Tensor = compute(packed_BTP, silu)
    return y_BTF


@torch.library.custom_op("samout_train::gated_halves", mutates_args=())
def _gated_halves(packed_BTP: Tensor, silu: bool) -> Tensor:
    return _halves_forward(packed_BTP, silu)


def _halves_forward(packed_BTP: Tensor, silu: bool) -> Tensor:
    y_BTF = _half_of(packed_BTP, silu)
    kernels_of(__package__, packed_BTP).gate(*packed_BTP.chunk(2, dim=-1), y_BTF, halves=True, silu=silu)
    return y_BTF


@_gated_halves.register_fake
def _half_of(packed_BTP: Tensor, silu: bool) -> Tensor:
    return packed_BTP.new_empty(*packed_BTP.shape[:-1], packed_BTP.shape[-1] // 2)


@torch.library.custom_op("samout_train::gated_halves_backward", mutates_args=())
def _gated_halves_backward(packed_BTP: Tensor, grad_BTF: Tensor, silu: bool) -> Tensor:
    return _halves_gradient(packed_BTP, grad_BTF, silu)


def _halves_gradient(packed_BTP: Tensor, grad_BTF: Tensor, silu: bool) -> Tensor:
    grad_BTP = torch.empty_like(packed_BTP)
    given = (*packed_BTP.chunk(2, dim=-1), grad_BTF, *grad_BTP.chunk(2, dim=-1))
    kernels_of(__package__, packed_BTP).gate_gradients(*given, halves=True, silu=silu)
    return grad_BTP


@_gated_halves_backward.register_fake
def _(packed_BTP: Tensor, grad_BTF: Tensor, silu: bool) -> Tensor:
    return torch.empty_like(packed_BTP)


def _keep_halves(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    packed_BTP, ctx.silu = inputs
    ctx.save_for_backward(packed_BTP)


def _through_halves(ctx: Any, grad_BTF: Tensor) -> tuple[Tensor, None]:
    compute = _gated_halves_backward if is_traced(grad_BTF) else _halves_gradient
    (packed_BTP,) = ctx.saved_tensors
    grad_BTP: Tensor = compute(packed_BTP, grad_BTF.contiguous(), ctx.silu)
    return grad_BTP, None


_gated_halves.register_autograd(_through_halves, setup_context=_keep_halves)


_GatedHalves = without_library(_halves_forward, _keep_halves, _through_halves)


def blended(
    f_BTD: Tensor,
    x_BTD: Tensor,
    alpha: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    eps: float,
    dropout: float,
    seed: Tensor,
    copy: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Return samout_train.ops.samout_layer.blended of contiguous tensors, and its copy in another precision."""
    compute = _blended if is_traced(x_BTD) else _Blended.apply
    y_BTD, copy_BTD, _ = compute(f_BTD, x_BTD, alpha, weight_D, bias_D, eps, dropout, seed, copy)
    return y_BTD, copy_BTD


@torch.library.custom_op("samout_train::blended", mutates_args=())
def _blended(
    f_BTD: Tensor,
    x_BTD: Tensor,
    alpha: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    eps: float,
    dropout: float,
    seed: Tensor,
    copy: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (B, T, D) in float32, its copy (empty without a dtype), and the statistics for the backward pass.

    The statistics are mean and inverse standard deviation of each position (2, B T). Only CUDA makes copies.
    """
    return _blend_forward(f_BTD, x_BTD, alpha, weight_D, bias_D, eps, dropout, seed, copy)


def _blend_forward(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    y_BTD, copy_BTD, statistics = _blend_outputs(*given)
    copies = () if given[-1] is None else (copy_BTD,)
    kernels_of(__package__, given[0]).blend(*given[:-1], y_BTD, statistics, *copies)
    return y_BTD, copy_BTD, statistics


@_blended.register_fake
def _blend_outputs(
    f_BTD: Tensor,
    x_BTD: Tensor,
    alpha: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    eps: float,
    dropout: float,
    seed: Tensor,
    copy: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    copy_BTD = x_BTD.new_empty(0) if copy is None else torch.empty_like(x_BTD, dtype=copy)
    return torch.empty_like(x_BTD), copy_BTD, x_BTD.new_empty(2, x_BTD.numel() // x_BTD.shape[-1])


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
    grad_copy_BTD: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of f, of x, and of weight, bias and alpha in one tensor (2 D + 1)."""
    return _blend_backward(f_BTD, x_BTD, alpha, weight_D, statistics, dropout, seed, grad_BTD, grad_copy_BTD)


def _blend_backward(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    grads = _blended_gradients(*given)
    copies = () if given[-1] is None else given[-1:]
    kernels_of(__package__, given[0]).blend_gradients(*given[:-1], *grads, *copies)
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
    grad_copy_BTD: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(f_BTD), torch.empty_like(x_BTD), x_BTD.new_empty(2 * x_BTD.shape[-1] + 1)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    f_BTD, x_BTD, alpha, weight_D, _, _, ctx.dropout, seed, ctx.copy = inputs
    ctx.save_for_backward(f_BTD, x_BTD, alpha, weight_D, output[2], seed)
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)  # otherwise torch makes zeros for the statistics


def _through_blend(
    ctx: Any, grad_BTD: Tensor | None, grad_copy_BTD: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    *saved, seed = ctx.saved_tensors
    if ctx.copy is None:
        grad_copy_BTD = None  # the copy is empty
    elif grad_copy_BTD is not None:
        grad_copy_BTD = grad_copy_BTD.contiguous()
    if grad_BTD is None:  # only products read the last blend of a model
        grad_BTD, grad_copy_BTD = grad_copy_BTD, None
    if grad_BTD is None:
        grad_BTD = torch.zeros_like(saved[1])
    alpha, width = saved[2], saved[3].numel()
    compute = _blended_backward if is_traced(grad_BTD) else _blend_backward
    grad_f_BTD, grad_x_BTD, others = compute(*saved, ctx.dropout, seed, grad_BTD.contiguous(), grad_copy_BTD)
    grad_weight_D, grad_bias_D, grad_alpha = others.split([width, width, 1])
    return grad_f_BTD, grad_x_BTD, grad_alpha.view(alpha.shape), grad_weight_D, grad_bias_D, None, None, None, None


_blended.register_autograd(_through_blend, setup_context=_keep)


_Blended = without_library(_blend_forward, _keep, _through_blend)

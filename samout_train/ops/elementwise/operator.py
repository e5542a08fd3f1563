"""Register the elementwise parts of a layer as torch operators. There is no second derivative."""

# B batch, T time, D width, H heads, K width of a head

from typing import Any

import torch
from torch import Tensor

from samout_train.ops.kernels import is_traced, kernels_of, without_library


def add_norm(*given: Any) -> tuple[Tensor, Tensor]:
    """Return x + dropout(branch) and its norm, of contiguous tensors and in the order of `_add_norm`."""
    compute = _add_norm if is_traced(given[0]) else _AddNorm.apply
    total_BTD, y_BTD, _ = compute(*given)
    return (given[0] if given[1] is None else total_BTD), y_BTD


@torch.library.custom_op("samout_train::add_norm", mutates_args=())
def _add_norm(
    x_BTD: Tensor,
    branch_BTD: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None,
    eps: float,
    dropout: float,
    seed: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x + dropout(branch) (empty without a branch), its norm in `dtype`, and the statistics of positions.

    The norm is a LayerNorm with a bias, and an RMSNorm without one.
    """
    return _add_norm_forward(x_BTD, branch_BTD, weight_D, bias_D, eps, dropout, seed, dtype)


def _add_norm_forward(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _add_norm_outputs(*given)
    kernels_of(__package__, given[0]).add_norm(*given[:-1], *outputs)
    return outputs


@_add_norm.register_fake
def _add_norm_outputs(
    x_BTD: Tensor,
    branch_BTD: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None,
    eps: float,
    dropout: float,
    seed: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    total_BTD = x_BTD.new_empty(0) if branch_BTD is None else torch.empty_like(x_BTD)
    statistics = x_BTD.new_empty(1 if bias_D is None else 2, x_BTD.numel() // x_BTD.shape[-1])
    return total_BTD, torch.empty_like(x_BTD, dtype=dtype), statistics


@torch.library.custom_op("samout_train::add_norm_backward", mutates_args=())
def _add_norm_backward(
    total_BTD: Tensor,
    weight_D: Tensor,
    statistics: Tensor,
    dropout: float,
    seed: Tensor,
    grad_total_BTD: Tensor | None,
    grad_y_BTD: Tensor,
    branch_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, of the branch (empty without one), and of weight and bias one after another."""
    return _add_norm_gradients(total_BTD, weight_D, statistics, dropout, seed, grad_total_BTD, grad_y_BTD, branch_dtype)


def _add_norm_gradients(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    grads = _add_norm_gradient_outputs(*given)
    kernels_of(__package__, given[0]).add_norm_gradients(*given[:-1], *grads)
    return grads


@_add_norm_backward.register_fake
def _add_norm_gradient_outputs(
    total_BTD: Tensor,
    weight_D: Tensor,
    statistics: Tensor,
    dropout: float,
    seed: Tensor,
    grad_total_BTD: Tensor | None,
    grad_y_BTD: Tensor,
    branch_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_branch_BTD = total_BTD.new_empty(0)
    if branch_dtype is not None:
        grad_branch_BTD = torch.empty_like(total_BTD, dtype=branch_dtype)
    return torch.empty_like(total_BTD), grad_branch_BTD, total_BTD.new_empty(len(statistics) * weight_D.numel())


def _keep_for_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_BTD, branch_BTD, weight_D, _, _, ctx.dropout, seed, _ = inputs
    total_BTD, _, statistics = output
    ctx.branch_dtype = None
    if branch_BTD is None:
        total_BTD = x_BTD
    elif ctx.dropout or branch_BTD.dtype != x_BTD.dtype:
        ctx.branch_dtype = branch_BTD.dtype
    ctx.adds = branch_BTD is not None
    ctx.save_for_backward(total_BTD, weight_D, statistics, seed)
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)


def _through_add_norm(ctx: Any, grad_total_BTD: Tensor | None, grad_y_BTD: Tensor | None, _: Any) -> tuple[Any, ...]:
    total_BTD, weight_D, statistics, seed = ctx.saved_tensors
    if grad_y_BTD is None:
        grad_y_BTD = torch.zeros_like(total_BTD)
    if not ctx.adds:
        grad_total_BTD = None  # the sum is empty
    elif grad_total_BTD is not None:
        grad_total_BTD = grad_total_BTD.contiguous()
    given = (total_BTD, weight_D, statistics, ctx.dropout, seed, grad_total_BTD, grad_y_BTD.contiguous())
    compute = _add_norm_backward if is_traced(total_BTD) else _add_norm_gradients
    grad_x_BTD, grad_branch_BTD, grad_weights = compute(*given, ctx.branch_dtype)
    grad_weight_D, grad_bias_D = grad_weights, None
    if len(statistics) == 2:
        grad_weight_D, grad_bias_D = grad_weights.chunk(2)
    for_branch = None
    if ctx.adds:
        for_branch = grad_x_BTD if ctx.branch_dtype is None else grad_branch_BTD
    return grad_x_BTD, for_branch, grad_weight_D, grad_bias_D, None, None, None, None


_add_norm.register_autograd(_through_add_norm, setup_context=_keep_for_norm)


_AddNorm = without_library(_add_norm_forward, _keep_for_norm, _through_add_norm)


def turn(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries and keys turned by their positions, and keys before that, in the order of `_turn`."""
    compute = _turn if is_traced(given[0]) else _Turn.apply
    outputs: tuple[Tensor, Tensor, Tensor] = compute(*given)
    return outputs


@torch.library.custom_op("samout_train::turn", mutates_args=())
def _turn(
    q_BTHK: Tensor, k_BTHK: Tensor, q_weight_K: Tensor | None, k_weight_K: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (B, T, H, K) each: queries and keys turned, and keys after their norm (empty without weights)."""
    return _turn_forward(q_BTHK, k_BTHK, q_weight_K, k_weight_K, eps)


def _turn_forward(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _turn_outputs(*given)
    kernels_of(__package__, given[0]).turn(*given, *outputs)
    return outputs


@_turn.register_fake
def _turn_outputs(
    q_BTHK: Tensor, k_BTHK: Tensor, q_weight_K: Tensor | None, k_weight_K: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    shape = tuple(q_BTHK.shape)
    plain_BTHK = k_BTHK.new_empty(0 if k_weight_K is None else shape)
    return q_BTHK.new_empty(shape), k_BTHK.new_empty(shape), plain_BTHK


@torch.library.custom_op("samout_train::turn_backward", mutates_args=())
def _turn_backward(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    q_weight_K: Tensor | None,
    k_weight_K: Tensor | None,
    eps: float,
    grad_q_turned_BTHK: Tensor,
    grad_k_turned_BTHK: Tensor,
    grad_k_plain_BTHK: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, of keys, and of both weights one after another (empty without weights)."""
    return _turn_gradients(
        q_BTHK, k_BTHK, q_weight_K, k_weight_K, eps, grad_q_turned_BTHK, grad_k_turned_BTHK, grad_k_plain_BTHK
    )


def _turn_gradients(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    grads = _turn_gradient_outputs(*given)
    kernels_of(__package__, given[0]).turn_gradients(*given, *grads)
    return grads


@_turn_backward.register_fake
def _turn_gradient_outputs(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    q_weight_K: Tensor | None,
    k_weight_K: Tensor | None,
    eps: float,
    grad_q_turned_BTHK: Tensor,
    grad_k_turned_BTHK: Tensor,
    grad_k_plain_BTHK: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    shape, weights = tuple(q_BTHK.shape), 0 if q_weight_K is None else 2 * q_BTHK.shape[-1]
    return q_BTHK.new_empty(shape), k_BTHK.new_empty(shape), q_BTHK.new_empty(weights, dtype=torch.float32)


def _keep_for_turn(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _through_turn(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    q_BTHK, k_BTHK, q_weight_K, k_weight_K = ctx.saved_tensors
    given = [None if grad is None else grad.contiguous() for grad in grads]
    for place in range(2):
        if given[place] is None:
            given[place] = q_BTHK.new_zeros(q_BTHK.shape)
    if q_weight_K is None:
        given[2] = None  # the plain keys are empty
    compute = _turn_backward if is_traced(q_BTHK) else _turn_gradients
    grad_q_BTHK, grad_k_BTHK, grad_weights = compute(q_BTHK, k_BTHK, q_weight_K, k_weight_K, ctx.eps, *given)
    for_weights: tuple[Tensor | None, ...] = (None, None)
    if q_weight_K is not None:
        for_weights = grad_weights.chunk(2)
    return grad_q_BTHK, grad_k_BTHK, *for_weights, None


_turn.register_autograd(_through_turn, setup_context=_keep_for_turn)


_Turn = without_library(_turn_forward, _keep_for_turn, _through_turn)


def minus_softplus(z_BTD: Tensor) -> Tensor:
    """Return -softplus(z) of a contiguous tensor."""
    compute = _minus_softplus if is_traced(z_BTD) else _MinusSoftplus.apply
    y_BTD: Tensor = compute(z_BTD)
    return y_BTD


@torch.library.custom_op("samout_train::minus_softplus", mutates_args=())
def _minus_softplus(z_BTD: Tensor) -> Tensor:
    return _minus_softplus_forward(z_BTD)


def _minus_softplus_forward(z_BTD: Tensor) -> Tensor:
    y_BTD = torch.empty_like(z_BTD)
    kernels_of(__package__, z_BTD).minus_softplus(z_BTD, y_BTD)
    return y_BTD


@_minus_softplus.register_fake
def _(z_BTD: Tensor) -> Tensor:
    return torch.empty_like(z_BTD)


@torch.library.custom_op("samout_train::minus_softplus_backward", mutates_args=())
def _minus_softplus_backward(z_BTD: Tensor, grad_BTD: Tensor) -> Tensor:
    return _minus_softplus_gradient(z_BTD, grad_BTD)


def _minus_softplus_gradient(z_BTD: Tensor, grad_BTD: Tensor) -> Tensor:
    grad_z_BTD = torch.empty_like(z_BTD)
    kernels_of(__package__, z_BTD).minus_softplus_gradients(z_BTD, grad_BTD, grad_z_BTD)
    return grad_z_BTD


@_minus_softplus_backward.register_fake
def _(z_BTD: Tensor, grad_BTD: Tensor) -> Tensor:
    return torch.empty_like(z_BTD)


def _keep_for_softplus(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _through_softplus(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor]:
    (z_BTD,) = ctx.saved_tensors
    compute = _minus_softplus_backward if is_traced(z_BTD) else _minus_softplus_gradient
    return (compute(z_BTD, grad_BTD.contiguous()),)


_minus_softplus.register_autograd(_through_softplus, setup_context=_keep_for_softplus)


_MinusSoftplus = without_library(_minus_softplus_forward, _keep_for_softplus, _through_softplus)

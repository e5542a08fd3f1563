"""Register the fused kernels as torch operators for autograd and torch.compile.

The forward pass saves the inputs and the maximum before every few rows, and the backward pass recomputes the rest.
There is no second derivative.
"""

# B batch, T time, D width, P packed: the streams side by side, N blocks of rows

from typing import Any

import torch
from torch import Tensor

from samout_train.ops.kernels import is_traced, kernels_of, without_library
from samout_train.ops.max_scan.reference import Form, num_streams

ROWS_A_CARRY = {"cpu": 64, "cuda": 16}


def fused_max_mix(
    packed_BTP: Tensor, state_BD: Tensor | None, decay_BTD: Tensor | None, form: Form
) -> tuple[Tensor, Tensor]:
    """Return samout_train.ops.max_scan.max_mix by a fused kernel; the state is float32."""
    if decay_BTD is not None:
        decay_BTD = decay_BTD.to(packed_BTP.dtype).contiguous()
    if state_BD is not None:
        state_BD = state_BD.float().contiguous()
    given = (packed_BTP.contiguous(), state_BD, decay_BTD, form)
    # Only tracing needs a torch operator: a call through one takes the host longer than a small kernel.
    if is_traced(packed_BTP):
        y_BTD, last_BD, _ = _max_mix(*given)
        return y_BTD, last_BD
    if not torch.is_grad_enabled():
        return _forward(*given)[:2]
    outputs: tuple[Tensor, Tensor] = _MaxMix.apply(*given)[:2]
    return outputs


def _forward(
    packed_BTP: Tensor, state_BD: Tensor | None, decay_BTD: Tensor | None, form: str
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _outputs(packed_BTP, state_BD, decay_BTD, form)
    kernels_of(__package__, packed_BTP).forward(packed_BTP, state_BD, decay_BTD, form, *outputs)
    return outputs


@torch.library.custom_op("samout_train::max_mix", mutates_args=())
def _max_mix(
    packed_BTP: Tensor, state_BD: Tensor | None, decay_BTD: Tensor | None, form: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (B, T, D), the last maximum (B, D), and the maximum before every few rows (B, N, D)."""
    return _forward(packed_BTP, state_BD, decay_BTD, form)


@_max_mix.register_fake
def _outputs(
    packed_BTP: Tensor, state_BD: Tensor | None, decay_BTD: Tensor | None, form: str
) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, packed_width = packed_BTP.shape
    width = packed_width // num_streams(form)
    rows = ROWS_A_CARRY["cuda" if packed_BTP.is_cuda else "cpu"]  # `device.type` takes the host longer
    num_carries = -(-time // rows)
    return (
        packed_BTP.new_empty(batch, time, width),
        packed_BTP.new_empty(batch, width, dtype=torch.float32),
        packed_BTP.new_empty(batch, num_carries, width, dtype=torch.float32),
    )


@torch.library.custom_op("samout_train::max_mix_backward", mutates_args=())
def _max_mix_backward(
    packed_BTP: Tensor,
    carries_BND: Tensor,
    decay_BTD: Tensor | None,
    form: str,
    grad_y_BTD: Tensor,
    grad_last_BD: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the packed streams, the first state and the decay (empty without a decay)."""
    return _backward_by_kernel(packed_BTP, carries_BND, decay_BTD, form, grad_y_BTD, grad_last_BD)


def _backward_by_kernel(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    grads = _gradients(*given)
    kernels_of(__package__, given[0]).backward(*given, *grads)
    return grads


@_max_mix_backward.register_fake
def _gradients(
    packed_BTP: Tensor,
    carries_BND: Tensor,
    decay_BTD: Tensor | None,
    form: str,
    grad_y_BTD: Tensor,
    grad_last_BD: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_packed_BTP = torch.empty_like(packed_BTP)
    batch, _, width = carries_BND.shape
    grad_state_BD = carries_BND.new_empty(batch, width)
    if decay_BTD is None:
        return grad_packed_BTP, grad_state_BD, packed_BTP.new_empty(0)
    return grad_packed_BTP, grad_state_BD, torch.empty_like(decay_BTD)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    packed_BTP, state_BD, decay_BTD, ctx.form = inputs
    y_BTD, _, carries_BND = output
    ctx.save_for_backward(packed_BTP, decay_BTD, carries_BND)
    ctx.mark_non_differentiable(carries_BND)
    ctx.set_materialize_grads(False)
    ctx.shape, ctx.has_state = y_BTD.shape, state_BD is not None


def _backward(ctx: Any, grad_y_BTD: Tensor | None, grad_last_BD: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    packed_BTP, decay_BTD, carries_BND = ctx.saved_tensors
    if grad_y_BTD is None:
        grad_y_BTD = packed_BTP.new_zeros(ctx.shape)
    if grad_last_BD is not None:
        grad_last_BD = grad_last_BD.contiguous()
    compute = _max_mix_backward if is_traced(packed_BTP) else _backward_by_kernel
    given = (packed_BTP, carries_BND, decay_BTD, ctx.form, grad_y_BTD.contiguous(), grad_last_BD)
    grad_packed_BTP, grad_state_BD, grad_decay_BTD = compute(*given)
    if decay_BTD is None:
        grad_decay_BTD = None
    if not ctx.has_state:
        grad_state_BD = None
    return grad_packed_BTP, grad_state_BD, grad_decay_BTD, None


_max_mix.register_autograd(_backward, setup_context=_setup_context)


_MaxMix = without_library(_forward, _setup_context, _backward)

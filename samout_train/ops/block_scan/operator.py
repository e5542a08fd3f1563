"""Register the fused kernels of max-plus blocks as torch operators, for autograd and torch.compile.

The backward pass reads the inputs and the state before every few rows. There is no second derivative.
"""

# B batch, T time, P packed: the streams side by side, N entries a block, G blocks, D = N G, R blocks of rows

from typing import Any

import torch
from torch import Tensor

from samout_train.ops.kernels import is_traced, kernels_of, without_library

ROWS_A_CARRY = 64  # on the CPU
CUDA_ROWS_A_CARRY = {2: 4, 3: 2}  # rows that a warp holds in registers, by entries of a block; 1 for larger blocks


def fused_block_mix(packed_BTP: Tensor, state_BNG: Tensor, temperature: Tensor | None) -> tuple[Tensor, Tensor]:
    """See samout_train.ops.block_scan.block_mix; the state is float32."""
    given = (packed_BTP.contiguous(), state_BNG.contiguous(), temperature)
    if is_traced(packed_BTP):
        y_BTD, last_BNG, _ = _block_mix(*given)
        return y_BTD, last_BNG
    if not torch.is_grad_enabled():
        return _forward(*given)[:2]
    outputs: tuple[Tensor, Tensor] = _BlockMix.apply(*given)[:2]
    return outputs


def rows_a_carry(device_type: str, size: int) -> int:
    """Return the number of rows from one saved state to the next."""
    if device_type == "cuda":
        return CUDA_ROWS_A_CARRY.get(size, 1)
    return ROWS_A_CARRY


def _forward(packed_BTP: Tensor, state_BNG: Tensor, temperature: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _outputs(packed_BTP, state_BNG, temperature)
    kernels_of(__package__, packed_BTP).forward(packed_BTP, state_BNG, temperature, *outputs)
    return outputs


@torch.library.custom_op("samout_train::block_mix", mutates_args=())
def _block_mix(packed_BTP: Tensor, state_BNG: Tensor, temperature: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (B, T, D), the last state (B, N, G), and the state before every few rows (B, R, N, G)."""
    return _forward(packed_BTP, state_BNG, temperature)


@_block_mix.register_fake
def _outputs(packed_BTP: Tensor, state_BNG: Tensor, temperature: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, _ = packed_BTP.shape
    _, size, blocks = state_BNG.shape
    rows = rows_a_carry(packed_BTP.device.type, size)
    return (
        packed_BTP.new_empty(batch, time, size * blocks),
        torch.empty_like(state_BNG),
        state_BNG.new_empty(batch, -(-time // rows), size, blocks),
    )


@torch.library.custom_op("samout_train::block_mix_backward", mutates_args=())
def _block_mix_backward(
    packed_BTP: Tensor, carries_BRNG: Tensor, temperature: Tensor | None, grad_y_BTD: Tensor, grad_last_BNG: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the packed streams and of the first state."""
    return _backward_by_kernel(packed_BTP, carries_BRNG, temperature, grad_y_BTD, grad_last_BNG)


def _backward_by_kernel(*given: Any) -> tuple[Tensor, Tensor]:
    grads = _gradients(*given)
    kernels_of(__package__, given[0]).backward(*given, *grads)
    return grads


@_block_mix_backward.register_fake
def _gradients(
    packed_BTP: Tensor, carries_BRNG: Tensor, temperature: Tensor | None, grad_y_BTD: Tensor, grad_last_BNG: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(packed_BTP), torch.empty_like(grad_last_BNG)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    packed_BTP, _, temperature = inputs
    y_BTD, last_BNG, carries_BRNG = output
    if temperature is not None:
        temperature = temperature.clone()  # it is changed in place from step to step
    ctx.save_for_backward(packed_BTP, carries_BRNG, temperature)
    ctx.mark_non_differentiable(carries_BRNG)
    ctx.set_materialize_grads(False)
    ctx.shapes = y_BTD.shape, last_BNG.shape


def _backward(ctx: Any, grad_y_BTD: Tensor | None, grad_last_BNG: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    packed_BTP, carries_BRNG, temperature = ctx.saved_tensors
    shape_BTD, shape_BNG = ctx.shapes
    if grad_y_BTD is None:
        grad_y_BTD = packed_BTP.new_zeros(shape_BTD)
    if grad_last_BNG is None:
        grad_last_BNG = carries_BRNG.new_zeros(shape_BNG)
    compute = _block_mix_backward if is_traced(packed_BTP) else _backward_by_kernel
    grads = compute(packed_BTP, carries_BRNG, temperature, grad_y_BTD.contiguous(), grad_last_BNG.contiguous())
    return *grads, None


_block_mix.register_autograd(_backward, setup_context=_setup_context)


_BlockMix = without_library(_forward, _setup_context, _backward)

"""Register the fused kernels of linear attention as torch operators, for autograd and torch.compile.

There is no second derivative.
"""

# B batch, H heads, T time, N chunks, C tokens of a chunk, K width of a key, V width of a value

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from samout_train.ops.head_layout import CHUNK, by_heads, padded, rows_of
from samout_train.ops.kernels import is_traced


def fused_chunks(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, log_decay: Tensor, state_BHKV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See samout_train.ops.linear_attention.chunked.by_chunks; all float32."""
    if state_BHKV is not None:
        state_BHKV = state_BHKV.contiguous()
    log_decay = log_decay.expand(len(q_BHTK), *log_decay.shape[1:])
    if log_decay.ndim == 4:
        log_decay = rows_of(log_decay)
    given = (rows_of(q_BHTK), rows_of(k_BHTK), rows_of(v_BHTV), log_decay, state_BHKV)
    if is_traced(q_BHTK):
        o_BHTV, last_BHKV, _, _ = _attend(*given)
        return o_BHTV, last_BHKV
    if not torch.is_grad_enabled():
        return _forward(*given, keeps=False)[:2]
    outputs: tuple[Tensor, Tensor] = _Attend.apply(*given)[:2]
    return outputs


def _forward(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, log_decay: Tensor, state_BHKV: Tensor | None, *, keeps: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from samout_train.ops.linear_attention import cpu

    o, last, before, scores = _outputs(q_BHTK, k_BHTK, v_BHTV, log_decay, state_BHKV)
    kept = (before, scores) if keeps else (None, None)
    cpu.forward(q_BHTK, k_BHTK, v_BHTV, log_decay, state_BHKV, o, last, *kept)
    return o, last, before, scores


@torch.library.custom_op("samout_train::linear_attention", mutates_args=())
def _attend(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, log_decay: Tensor, state_BHKV: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return o, the last state, the states before each chunk and after the last, and the scores inside of them."""
    return _forward(q_BHTK, k_BHTK, v_BHTV, log_decay, state_BHKV, keeps=True)


@_attend.register_fake
def _outputs(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, log_decay: Tensor, state_BHKV: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, time, keys = q_BHTK.shape
    values, chunks = v_BHTV.shape[3], -(-time // CHUNK)
    return (
        by_heads(q_BHTK, values),
        q_BHTK.new_empty(batch, heads, keys, values),
        q_BHTK.new_empty(batch, heads, chunks + 1, padded(keys) * padded(values)),
        q_BHTK.new_empty(batch, heads, chunks, CHUNK * CHUNK),
    )


@torch.library.custom_op("samout_train::linear_attention_backward", mutates_args=())
def _attend_backward(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    log_decay: Tensor,
    has_state: bool,
    before: Tensor,
    scores: Tensor,
    grad_o_BHTV: Tensor,
    grad_last_BHKV: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, the log-decay and the state."""
    given = (q_BHTK, k_BHTK, v_BHTV, log_decay, has_state, before, scores, grad_o_BHTV, grad_last_BHKV)
    return _backward_by_kernel(*given)


@_attend_backward.register_fake
def _gradients(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    log_decay: Tensor,
    has_state: bool,
    before: Tensor,
    scores: Tensor,
    grad_o_BHTV: Tensor,
    grad_last_BHKV: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, heads, _, keys = q_BHTK.shape
    grad_decay = by_heads(q_BHTK, keys) if log_decay.ndim == 4 else q_BHTK.new_empty(q_BHTK.shape[:3])
    return (
        by_heads(q_BHTK, keys),
        by_heads(q_BHTK, keys),
        by_heads(q_BHTK, v_BHTV.shape[3]),
        grad_decay,
        q_BHTK.new_empty(batch, heads, keys, v_BHTV.shape[3]),
    )


def _backward_by_kernel(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from samout_train.ops.linear_attention import cpu

    grads = _gradients(*given)
    cpu.backward(*given, *grads)
    return grads


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q_BHTK, k_BHTK, v_BHTV, log_decay, state_BHKV = inputs
    before, scores = output[2:]
    ctx.save_for_backward(q_BHTK, k_BHTK, v_BHTV, log_decay, before, scores)
    ctx.mark_non_differentiable(before, scores)
    ctx.set_materialize_grads(False)
    ctx.has_state = state_BHKV is not None


def _backward(
    ctx: Any, grad_o_BHTV: Tensor | None, grad_last_BHKV: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    q_BHTK, k_BHTK, v_BHTV, log_decay, before, scores = ctx.saved_tensors
    if grad_o_BHTV is None:
        grad_o_BHTV = torch.zeros_like(v_BHTV)
    if grad_last_BHKV is not None:
        grad_last_BHKV = grad_last_BHKV.contiguous()
    given = (q_BHTK, k_BHTK, v_BHTV, log_decay, ctx.has_state, before, scores, rows_of(grad_o_BHTV), grad_last_BHKV)
    compute = _attend_backward if is_traced(q_BHTK) else _backward_by_kernel
    *grads, grad_state_BHKV = compute(*given)
    return *grads, grad_state_BHKV if ctx.has_state else None


_attend.register_autograd(_backward, setup_context=_setup_context)


class _Attend(torch.autograd.Function):
    """The operator without torch's library around it."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `_attend` does."""
        outputs = _forward(*given, keeps=True)
        _setup_context(ctx, given, outputs)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs."""
        return _backward(ctx, *grads)

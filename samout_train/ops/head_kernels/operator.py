"""Register the kernels as a torch operator, for autograd and torch.compile.

There is no second derivative.
"""

# B batch, H heads, T time, N chunks, K width of a key, V width of a value

from functools import partial
from typing import Any

import torch
from torch import Tensor

from samout_train.ops.head_kernels.layout import CHUNK, by_heads, padded, rows_of
from samout_train.ops.kernels import is_traced, without_library

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def fused_chunks(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    log_decay: Tensor,
    state_BHKV: Tensor | None,
    beta_BHT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the results of `by_chunks`, in float32: of the delta rule if there is a beta, else of linear attention."""
    if state_BHKV is not None:
        state_BHKV = state_BHKV.contiguous()
    log_decay = log_decay.expand(len(q_BHTK), *log_decay.shape[1:])
    if log_decay.ndim == 4:
        log_decay = rows_of(log_decay)
    given = (rows_of(q_BHTK), rows_of(k_BHTK), rows_of(v_BHTV), log_decay, beta_BHT, state_BHKV)
    if is_traced(q_BHTK):
        o_BHTV, last_BHKV, _, _ = _recur(*given)
        return o_BHTV, last_BHKV
    if not torch.is_grad_enabled():
        return _forward(*given, keeps=False)[:2]
    outputs: tuple[Tensor, Tensor] = _Recur.apply(*given)[:2]
    return outputs


def _kind(log_decay: Tensor, beta_BHT: Tensor | None) -> Any:
    """Return the module with the kernels of a kind of recurrence; it needs numba."""
    from samout_train.ops.head_kernels import channel_decay, delta_rule, scalar_decay

    if beta_BHT is not None:
        return delta_rule
    return channel_decay if log_decay.ndim == 4 else scalar_decay


def _forward(*given: Any, keeps: bool) -> Outputs:
    outputs = _outputs(*given)
    kept = outputs[2:] if keeps else ()
    _kind(*given[3:5]).forward(*given, *outputs[:2], *kept)
    return outputs


@torch.library.custom_op("samout_train::head_recurrence", mutates_args=())
def _recur(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    log_decay: Tensor,
    beta_BHT: Tensor | None,
    state_BHKV: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return o, the last state, the states before each chunk and after the last, and the chunks' other kept values."""
    return _forward(q_BHTK, k_BHTK, v_BHTV, log_decay, beta_BHT, state_BHKV, keeps=True)


@_recur.register_fake
def _outputs(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    log_decay: Tensor,
    beta_BHT: Tensor | None,
    state_BHKV: Tensor | None,
) -> Outputs:
    batch, heads, time, keys = q_BHTK.shape
    values, chunks = v_BHTV.shape[3], -(-time // CHUNK)
    kept = CHUNK * CHUNK if beta_BHT is None else CHUNK * (2 * CHUNK + padded(values))
    return (
        by_heads(q_BHTK, values),
        q_BHTK.new_empty(batch, heads, keys, values),
        q_BHTK.new_empty(batch, heads, chunks + 1, padded(keys) * padded(values)),
        q_BHTK.new_empty(batch, heads, chunks, kept),
    )


@torch.library.custom_op("samout_train::head_recurrence_backward", mutates_args=())
def _recur_backward(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    log_decay: Tensor,
    beta_BHT: Tensor | None,
    state_BHKV: Tensor | None,
    before: Tensor,
    kept: Tensor,
    grad_o_BHTV: Tensor,
    grad_last_BHKV: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, the log-decay, beta (empty without one) and the state."""
    inputs = (q_BHTK, k_BHTK, v_BHTV, log_decay, beta_BHT, state_BHKV)
    return _backward_by_kernel(*inputs, before, kept, grad_o_BHTV, grad_last_BHKV)


@_recur_backward.register_fake
def _gradients(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, log_decay: Tensor, beta_BHT: Tensor | None, *others: Any
) -> Gradients:
    batch, heads, time, keys = q_BHTK.shape
    values = v_BHTV.shape[3]
    return (
        by_heads(q_BHTK, keys),
        by_heads(q_BHTK, keys),
        by_heads(q_BHTK, values),
        by_heads(q_BHTK, keys) if log_decay.ndim == 4 else q_BHTK.new_empty(batch, heads, time),
        q_BHTK.new_empty(0 if beta_BHT is None else beta_BHT.shape),
        q_BHTK.new_empty(batch, heads, keys, values),
    )


def _backward_by_kernel(*given: Any) -> Gradients:
    grads = _gradients(*given)
    inputs, kept, upstream = given[:6], given[6:8], given[8:]
    of_beta = None if given[4] is None else grads[4]
    _kind(*given[3:5]).backward(*inputs, None, None, *kept, *upstream, *grads[:4], of_beta, grads[5])
    return grads


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    kept = output[2:]
    ctx.save_for_backward(*inputs, *kept)
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_o_BHTV: Tensor | None, grad_last_BHKV: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    q_BHTK, _, v_BHTV, _, beta_BHT, state_BHKV = saved[:6]
    if grad_o_BHTV is None:
        grad_o_BHTV = torch.zeros_like(v_BHTV)
    if grad_last_BHKV is not None:
        grad_last_BHKV = grad_last_BHKV.contiguous()
    compute = _recur_backward if is_traced(q_BHTK) else _backward_by_kernel
    *grads, of_beta_BHT, of_state_BHKV = compute(*saved, rows_of(grad_o_BHTV), grad_last_BHKV)
    return (
        *grads,
        None if beta_BHT is None else of_beta_BHT,
        None if state_BHKV is None else of_state_BHKV,
    )


_recur.register_autograd(_backward, setup_context=_setup_context)


_Recur = without_library(partial(_forward, keeps=True), _setup_context, _backward)

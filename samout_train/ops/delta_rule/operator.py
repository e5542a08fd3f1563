"""Register the fused kernels of the gated delta rule as torch operators, for autograd and torch.compile.

There is no second derivative.
"""

# B batch, H heads, T time, N chunks, C tokens of a chunk, K width of a key, V width of a value

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from samout_train.ops.head_layout import CHUNK, by_heads, padded, rows_of
from samout_train.ops.kernels import is_traced

Kept = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def fused_chunks(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    beta_BHT: Tensor,
    log_decay_BHT: Tensor,
    state_BHKV: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See samout_train.ops.delta_rule.chunked.by_chunks; all float32."""
    if state_BHKV is not None:
        state_BHKV = state_BHKV.contiguous()
    given = (rows_of(q_BHTK), rows_of(k_BHTK), rows_of(v_BHTV), beta_BHT, log_decay_BHT, state_BHKV)
    if is_traced(q_BHTK):
        o_BHTV, last_BHKV = _delta_rule(*given)[:2]
        return o_BHTV, last_BHKV
    if not torch.is_grad_enabled():
        return _forward(*given, keeps=False)[:2]
    outputs: tuple[Tensor, Tensor] = _DeltaRule.apply(*given)[:2]
    return outputs


def _forward(*given: Any, keeps: bool) -> Kept:
    from samout_train.ops.delta_rule import cpu

    outputs = _outputs(*given)
    kept = outputs[2:] if keeps else (None, None, None)
    cpu.forward(*given, *outputs[:2], *kept)
    return outputs


@torch.library.custom_op("samout_train::delta_rule", mutates_args=())
def _delta_rule(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    beta_BHT: Tensor,
    log_decay_BHT: Tensor,
    state_BHKV: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return o, the last state, and of chunks the states before them, their scores and what they write."""
    return _forward(q_BHTK, k_BHTK, v_BHTV, beta_BHT, log_decay_BHT, state_BHKV, keeps=True)


@_delta_rule.register_fake
def _outputs(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    beta_BHT: Tensor,
    log_decay_BHT: Tensor,
    state_BHKV: Tensor | None,
) -> Kept:
    batch, heads, time, keys = q_BHTK.shape
    values, chunks = v_BHTV.shape[3], -(-time // CHUNK)
    return (
        by_heads(q_BHTK, values),
        q_BHTK.new_empty(batch, heads, keys, values),
        q_BHTK.new_empty(batch, heads, chunks + 1, padded(keys) * padded(values)),
        q_BHTK.new_empty(batch, heads, chunks, 2 * CHUNK * CHUNK),
        q_BHTK.new_empty(batch, heads, chunks, CHUNK * padded(values)),
    )


@torch.library.custom_op("samout_train::delta_rule_backward", mutates_args=())
def _delta_rule_backward(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    beta_BHT: Tensor,
    log_decay_BHT: Tensor,
    state_BHKV: Tensor | None,
    before: Tensor,
    scores: Tensor,
    written: Tensor,
    grad_o_BHTV: Tensor,
    grad_last_BHKV: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, beta, the log-decay and the state."""
    inputs = (q_BHTK, k_BHTK, v_BHTV, beta_BHT, log_decay_BHT, state_BHKV)
    return _backward_by_kernel(*inputs, before, scores, written, grad_o_BHTV, grad_last_BHKV)


@_delta_rule_backward.register_fake
def _gradients(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, *others: Any) -> Gradients:
    batch, heads, _, keys = q_BHTK.shape
    values = v_BHTV.shape[3]
    return (
        by_heads(q_BHTK, keys),
        by_heads(q_BHTK, keys),
        by_heads(q_BHTK, values),
        q_BHTK.new_empty(q_BHTK.shape[:3]),
        q_BHTK.new_empty(q_BHTK.shape[:3]),
        q_BHTK.new_empty(batch, heads, keys, values),
    )


def _backward_by_kernel(*given: Any) -> Gradients:
    from samout_train.ops.delta_rule import cpu

    grads = _gradients(*given)
    cpu.backward(*given[:6], None, None, *given[6:], *grads)
    return grads


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Kept) -> None:
    kept = output[2:]
    ctx.save_for_backward(*inputs, *kept)
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_o_BHTV: Tensor | None, grad_last_BHKV: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    q_BHTK, k_BHTK, v_BHTV, beta_BHT, log_decay_BHT, state_BHKV, *kept = ctx.saved_tensors
    if grad_o_BHTV is None:
        grad_o_BHTV = torch.zeros_like(v_BHTV)
    if grad_last_BHKV is not None:
        grad_last_BHKV = grad_last_BHKV.contiguous()
    inputs = (q_BHTK, k_BHTK, v_BHTV, beta_BHT, log_decay_BHT, state_BHKV)
    compute = _delta_rule_backward if is_traced(q_BHTK) else _backward_by_kernel
    *grads, grad_state_BHKV = compute(*inputs, *kept, rows_of(grad_o_BHTV), grad_last_BHKV)
    return *grads, None if state_BHKV is None else grad_state_BHKV


_delta_rule.register_autograd(_backward, setup_context=_setup_context)


class _DeltaRule(torch.autograd.Function):
    """The operator without torch's library around it."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Kept:
        """Return what `_delta_rule` does."""
        outputs = _forward(*given, keeps=True)
        _setup_context(ctx, given, outputs)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs."""
        return _backward(ctx, *grads)

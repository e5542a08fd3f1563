"""Compute the gated delta rule: each head has a decaying matrix; a token replaces the value that its key reads there.

    S_t = a_t S_{t-1} + beta_t k_t (v_t - a_t S_{t-1}^T k_t)^T,   o_t = S_t^T q_t

With |k| = 1 and beta from 0 to 1, the value that k reads moves from the old one to v by the share beta; beta up to 2
gives the step an eigenvalue down to -1. DeltaNet (a = 1) and Gated DeltaNet compute this.
"""

# B batch, H heads, T time, K width of a key, V width of a value

import torch
from torch import Tensor

from samout_train.ops import fla
from samout_train.ops.chunking import widened, without_autocast
from samout_train.ops.delta_rule.chunked import CHUNK, by_chunks
from samout_train.ops.delta_rule.serial import serial, step
from samout_train.ops.kernels import has_head_kernels

__all__ = ["CHUNK", "delta_rule", "serial"]


def delta_rule(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    beta_BHT: Tensor,
    log_decay_BHT: Tensor | None = None,
    state_BHKV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the value that each token reads, and the state after the last one.

    Computed in float32, or in float64 if the queries are float64, and rounded once.

    Args:
        q_BHTK: Queries, T at least 1.
        k_BHTK: Keys, of norm 1: with a larger norm the state may grow without bound.
        v_BHTV: Values.
        beta_BHT: How much of the value that a key reads is replaced, from 0 to 2.
        log_decay_BHT: log a, at most 0. Minus infinity erases everything before the token. None for no decay.
        state_BHKV: S before the first token; None for zero.

    Returns:
        (o_BHTV, state_BHKV): o in the dtype of the queries; the state is at least float32.

    Raises:
        ValueError: if T is 0, or shapes disagree.
    """
    _require_shapes(q_BHTK, k_BHTK, v_BHTV, beta_BHT, log_decay_BHT, state_BHKV)
    if q_BHTK.shape[2] > 1 and fla.takes(k_BHTK, v_BHTV):
        return fla.delta_rule(q_BHTK, k_BHTK, v_BHTV, beta_BHT, log_decay_BHT, state_BHKV)
    dtype = q_BHTK.dtype
    with without_autocast(q_BHTK.device.type):
        q_BHTK, k_BHTK, v_BHTV = widened(q_BHTK), widened(k_BHTK), widened(v_BHTV)
        beta_BHT = beta_BHT.to(q_BHTK.dtype)
        if log_decay_BHT is None:
            log_decay_BHT = torch.zeros_like(beta_BHT)
        log_decay_BHT = log_decay_BHT.to(q_BHTK.dtype)
        if state_BHKV is not None:
            state_BHKV = state_BHKV.to(q_BHTK.dtype)
        if q_BHTK.shape[2] == 1:
            o_BHTV, state_BHKV = step(q_BHTK, k_BHTK, v_BHTV, beta_BHT, log_decay_BHT, state_BHKV)
        elif has_head_kernels(q_BHTK):
            from samout_train.ops.head_kernels import fused_chunks

            o_BHTV, state_BHKV = fused_chunks(q_BHTK, k_BHTK, v_BHTV, log_decay_BHT, state_BHKV, beta_BHT)
        else:
            o_BHTV, state_BHKV = by_chunks(q_BHTK, k_BHTK, v_BHTV, beta_BHT, log_decay_BHT, state_BHKV)
    return o_BHTV.to(dtype), state_BHKV


def _require_shapes(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> None:
    batch, heads, time, width = q.shape
    if time == 0 or k.shape != q.shape or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"queries {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)} must have the same batch, "
            "heads and time, at least 1, and queries and keys the same width"
        )
    for name, given in (("beta_BHT", beta), ("log_decay_BHT", log_decay)):
        if given is not None and given.shape != (batch, heads, time):
            raise ValueError(f"{name} {tuple(given.shape)} must be {(batch, heads, time)}")
    if state is not None and state.shape != (batch, heads, width, v.shape[3]):
        raise ValueError(f"state_BHKV {tuple(state.shape)} must be {(batch, heads, width, v.shape[3])}")

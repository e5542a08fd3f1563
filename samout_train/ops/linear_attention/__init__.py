"""Compute decayed linear attention: each head has a matrix that decays, adds an outer product per token, and is read.

    S_t = Diag(a_t) S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t

The decay a_t, from 0 to 1, is given as its logarithm: none, one number per head and token, or one per head, token and
key channel. RetNet, GLA, Mamba-2, HGRN2 and mLSTM compute this.
"""

# B batch, H heads, T time, K width of a key, V width of a value

from torch import Tensor

from samout_train.ops import fla
from samout_train.ops.chunking import widened, without_autocast
from samout_train.ops.kernels import has_head_kernels
from samout_train.ops.linear_attention.chunked import CHUNK, by_chunks
from samout_train.ops.linear_attention.serial import serial, step

__all__ = ["CHUNK", "linear_attention", "serial"]


def linear_attention(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    log_decay: Tensor | None = None,
    state_BHKV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the value that each token reads, and the state after the last one.

    Computed in float32, or in float64 if the queries are float64, and rounded once.

    Args:
        q_BHTK: Queries, T at least 1.
        k_BHTK: Keys.
        v_BHTV: Values.
        log_decay: log a, at most 0; (B, H, T) or (1, H, T), or (B, H, T, K) with one number per key channel. Minus
            infinity erases everything before the token. None for no decay.
        state_BHKV: S before the first token; None for zero.

    Returns:
        (o_BHTV, state_BHKV): o in the dtype of the queries; the state is at least float32.

    Raises:
        ValueError: if T is 0, or shapes disagree.
    """
    _require_shapes(q_BHTK, k_BHTK, v_BHTV, log_decay, state_BHKV)
    if q_BHTK.shape[2] > 1 and fla.takes(k_BHTK, v_BHTV):
        return fla.linear_attention(q_BHTK, k_BHTK, v_BHTV, log_decay, state_BHKV)
    dtype = q_BHTK.dtype
    with without_autocast(q_BHTK.device.type):
        q_BHTK, k_BHTK, v_BHTV = widened(q_BHTK), widened(k_BHTK), widened(v_BHTV)
        if log_decay is None:
            log_decay = q_BHTK.new_zeros(1, *q_BHTK.shape[1:3])
        log_decay = log_decay.to(q_BHTK.dtype)
        if state_BHKV is not None:
            state_BHKV = state_BHKV.to(q_BHTK.dtype)
        if q_BHTK.shape[2] == 1:
            o_BHTV, state_BHKV = step(q_BHTK, k_BHTK, v_BHTV, log_decay, state_BHKV)
        elif has_head_kernels(q_BHTK):
            from samout_train.ops.head_kernels import fused_chunks

            o_BHTV, state_BHKV = fused_chunks(q_BHTK, k_BHTK, v_BHTV, log_decay, state_BHKV)
        else:
            o_BHTV, state_BHKV = by_chunks(q_BHTK, k_BHTK, v_BHTV, log_decay, state_BHKV)
    return o_BHTV.to(dtype), state_BHKV


def _require_shapes(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None) -> None:
    batch, heads, time, width = q.shape
    if time == 0 or k.shape != q.shape or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"queries {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)} must have the same batch, "
            "heads and time, at least 1, and queries and keys the same width"
        )
    if log_decay is not None and log_decay.shape not in (
        (batch, heads, time),
        (1, heads, time),
        (batch, heads, time, width),
    ):
        raise ValueError(f"log_decay {tuple(log_decay.shape)} must be {(batch, heads, time)}, with or without {width}")
    if state is not None and state.shape != (batch, heads, width, v.shape[3]):
        raise ValueError(f"state_BHKV {tuple(state.shape)} must be {(batch, heads, width, v.shape[3])}")

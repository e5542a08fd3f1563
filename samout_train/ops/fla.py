"""Call the chunk kernels of flash-linear-attention on CUDA for recurrences over matrices. Needs the extra [fla].

They run in half precision only: their products round float32 to TF32, so float32 runs in torch's chunks instead. They
subtract sums of log-decays within a chunk, so a log-decay of minus infinity is replaced by one that leaves nothing.
They have their own autograd, and torch.compile does not see into them. None of their code is copied here.
"""

# B batch, H heads, T time, K width of a key, V width of a value

import torch
from torch import Tensor

from samout_train.ops.kernels import has_chunk_kernels, log_torch_chunks

LEAST_LOG_DECAY = -100.0  # exp of it is below the smallest normal float32
WIDEST_KEY = 256
HALF = (torch.bfloat16, torch.float16)


def takes(k_BHTK: Tensor, v_BHTV: Tensor) -> bool:
    """Return whether the kernels of flash-linear-attention run this; the precision of the values decides.

    If not, the reason is logged once, except while torch.compile traces: the kernels never run there.
    """
    if v_BHTV.device.type != "cuda" or torch.compiler.is_compiling():
        return False
    if v_BHTV.dtype not in HALF:
        log_torch_chunks("cuda", f"fla takes half precision, not {str(v_BHTV.dtype).removeprefix('torch.')}")
        return False
    if k_BHTK.shape[-1] > WIDEST_KEY:
        log_torch_chunks("cuda", f"fla takes keys of at most {WIDEST_KEY} numbers, not {k_BHTK.shape[-1]}")
        return False
    return has_chunk_kernels("cuda")


def linear_attention(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, log_decay: Tensor | None, state_BHKV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See samout_train.ops.linear_attention.linear_attention."""
    q_BTHK, k_BTHK, v_BTHV = _by_time(v_BHTV.dtype, q_BHTK, k_BHTK, v_BHTV)
    if log_decay is None:
        log_decay = v_BHTV.new_zeros(v_BHTV.shape[:3], dtype=torch.float32)
    decay = log_decay.float().clamp(min=LEAST_LOG_DECAY).expand(len(v_BHTV), *log_decay.shape[1:]).transpose(1, 2)
    if log_decay.ndim == 4:
        from fla.ops.gla import chunk_gla as chunks
    else:
        from fla.ops.simple_gla import chunk_simple_gla as chunks
    o_BTHV, state_BHKV = chunks(
        q_BTHK,
        k_BTHK,
        v_BTHV,
        g=decay.contiguous(),
        scale=1.0,
        initial_state=_wide(state_BHKV),
        output_final_state=True,
    )
    return o_BTHV.transpose(1, 2).to(q_BHTK.dtype), state_BHKV


def delta_rule(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    beta_BHT: Tensor,
    log_decay_BHT: Tensor | None,
    state_BHKV: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See samout_train.ops.delta_rule.delta_rule."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    q_BTHK, k_BTHK, v_BTHV = _by_time(v_BHTV.dtype, q_BHTK, k_BHTK, v_BHTV)
    if log_decay_BHT is None:
        log_decay_BHT = torch.zeros_like(beta_BHT)
    o_BTHV, state_BHKV = chunk_gated_delta_rule(
        q_BTHK,
        k_BTHK,
        v_BTHV,
        g=log_decay_BHT.float().clamp(min=LEAST_LOG_DECAY).transpose(1, 2).contiguous(),
        beta=beta_BHT.to(v_BHTV.dtype).transpose(1, 2).contiguous(),
        scale=1.0,
        initial_state=_wide(state_BHKV),
        output_final_state=True,
    )
    return o_BTHV.transpose(1, 2).to(q_BHTK.dtype), state_BHKV


def _by_time(dtype: torch.dtype, *streams: Tensor) -> list[Tensor]:
    """Return (B, H, T, ...) as (B, T, H, ...)."""
    return [stream.to(dtype).transpose(1, 2).contiguous() for stream in streams]


def _wide(state_BHKV: Tensor | None) -> Tensor | None:
    if state_BHKV is None:
        return None
    return state_BHKV.float().contiguous()

"""Define decayed linear attention one token after another; decoding uses its step."""

# B batch, H heads, T time, K width of a key, V width of a value

import torch
from torch import Tensor


def serial(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, log_decay: Tensor, state_BHKV: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See samout_train.ops.linear_attention.linear_attention; T calls of `step`."""
    outputs = []
    tokens = zip(*(stream.split(1, dim=2) for stream in (q_BHTK, k_BHTK, v_BHTV, log_decay)), strict=True)
    for q_BH1K, k_BH1K, v_BH1V, log_decay_now in tokens:
        o_BH1V, state_BHKV = step(q_BH1K, k_BH1K, v_BH1V, log_decay_now, state_BHKV)
        outputs.append(o_BH1V)
    assert state_BHKV is not None
    return torch.cat(outputs, dim=2), state_BHKV


def step(
    q_BH1K: Tensor, k_BH1K: Tensor, v_BH1V: Tensor, log_decay: Tensor, state_BHKV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the value that one token reads, and the state after it."""
    written_BHKV = k_BH1K.transpose(2, 3) * v_BH1V
    if state_BHKV is None:
        after_BHKV = written_BHKV
    elif log_decay.ndim == 4:
        after_BHKV = log_decay.transpose(2, 3).exp() * state_BHKV + written_BHKV
    else:
        after_BHKV = log_decay.exp()[..., None] * state_BHKV + written_BHKV
    return q_BH1K @ after_BHKV, after_BHKV

"""Define the gated delta rule one token after another; decoding uses its step."""

# B batch, H heads, T time, K width of a key, V width of a value

import torch
from torch import Tensor


def serial(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    beta_BHT: Tensor,
    log_decay_BHT: Tensor,
    state_BHKV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See samout_train.ops.delta_rule.delta_rule; T calls of `step`."""
    outputs = []
    streams = (q_BHTK, k_BHTK, v_BHTV, beta_BHT, log_decay_BHT)
    tokens = zip(*(stream.split(1, dim=2) for stream in streams), strict=True)
    for q_BH1K, k_BH1K, v_BH1V, beta_BH1, log_decay_BH1 in tokens:
        o_BH1V, state_BHKV = step(q_BH1K, k_BH1K, v_BH1V, beta_BH1, log_decay_BH1, state_BHKV)
        outputs.append(o_BH1V)
    assert state_BHKV is not None
    return torch.cat(outputs, dim=2), state_BHKV


def step(
    q_BH1K: Tensor,
    k_BH1K: Tensor,
    v_BH1V: Tensor,
    beta_BH1: Tensor,
    log_decay_BH1: Tensor,
    state_BHKV: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the value that one token reads, and the state after it."""
    k_BHK1 = k_BH1K.transpose(2, 3)
    if state_BHKV is None:
        after_BHKV = k_BHK1 * (beta_BH1[..., None] * v_BH1V)
    else:
        faded_BHKV = log_decay_BH1.exp()[..., None] * state_BHKV
        after_BHKV = faded_BHKV + k_BHK1 * (beta_BH1[..., None] * (v_BH1V - k_BH1K @ faded_BHKV))
    return q_BH1K @ after_BHKV, after_BHKV

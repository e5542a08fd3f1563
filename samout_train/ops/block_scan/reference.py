"""Define the recurrence of row-normalised max-plus blocks in plain torch; fused kernels are compared with it.

    A_t[i, j] = L_t[i, j] - max over j of L_t[i, j]
    m_t[i]    = max over j of (A_t[i, j] + m_{t-1}[j])
    y_t[i]    = (e_t[i] v_t[i] + c_t[i]) v_t[i],     v_t = m_t - the mean of its block

At a temperature tau above 0 both maxima are tau logsumexp(. / tau). Computed in float64 or float32; narrower input is
widened first, and y is rounded once. Of equal entries the first is the maximum, and it alone takes the gradient.
"""

# B batch, T time, P packed: the streams side by side, N entries a block, G blocks, D = N G

import torch
from torch import Tensor


def block_mix(packed_BTP: Tensor, state_BNG: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """See samout_train.ops.block_scan.block_mix."""
    batch, time, _ = packed_BTP.shape
    size, blocks = state_BNG.shape[1:]
    wide = torch.promote_types(packed_BTP.dtype, torch.float32)
    width = size * blocks
    e_BTNG, c_BTNG, logits_BTQ = packed_BTP.to(wide).split([width, width, size * width], dim=-1)
    e_BTNG, c_BTNG = e_BTNG.reshape(batch, time, size, blocks), c_BTNG.reshape(batch, time, size, blocks)
    logits_BTIJG = logits_BTQ.reshape(batch, time, size, size, blocks)
    steps_BTIJG = logits_BTIJG - _maximum(logits_BTIJG, temperature).unsqueeze(3)
    m_BNG, states = state_BNG.to(wide), []
    for steps_BIJG in steps_BTIJG.unbind(1):
        m_BNG = _maximum(steps_BIJG + m_BNG.unsqueeze(1), temperature)
        states.append(m_BNG)
    m_BTNG = torch.stack(states, dim=1)
    v_BTNG = m_BTNG - m_BTNG.mean(dim=2, keepdim=True)
    y_BTNG = (e_BTNG * v_BTNG + c_BTNG) * v_BTNG
    return y_BTNG.reshape(batch, time, width).to(packed_BTP.dtype), m_BNG


def _maximum(x: Tensor, temperature: float) -> Tensor:
    """Return the maximum over j, the second to last dimension."""
    if temperature:
        return temperature * torch.logsumexp(x / temperature, dim=-2)
    return x.max(dim=-2).values

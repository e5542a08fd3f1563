"""The running maximum and the output formulas of V8 and V1 in plain torch, the reference for all kernels.

    m_t = max(m_{t-1} + a_t, d_t)
    v8:  y = (e m + c) m          v1:  y = (m + c) m + b

Computation is in float64 or float32; narrower input is widened first, and y is rounded once. Ties and gradients follow
torch.cummax: among equal values the latest one is the maximum, and it alone gets the gradient. A state that ties with
an input therefore gets none. NaN persists from where it enters.
"""

# B batch, T time, S the state and then time, D width, P packed: the streams side by side

from typing import Literal

import torch
from torch import Tensor

Form = Literal["scan", "v8", "v1"]

# The streams of a form, side by side. The scanned stream, d, is the last.
STREAMS = {
    "scan": ("d",),  # y = m
    "v8": ("e", "c", "d"),  # y = (e m + c) m
    "v1": ("b", "c", "d"),  # y = (m + c) m + b
}
CODES = {form: code for code, form in enumerate(STREAMS)}


def num_streams(form: str) -> int:
    """Return the number of streams of a form."""
    return len(STREAMS[form])


def max_mix(packed_BTP: Tensor, state_BD: Tensor, decay_BTD: Tensor | None, form: Form) -> tuple[Tensor, Tensor]:
    """Return samout_train.ops.max_scan.max_mix by torch's operations."""
    wide = torch.promote_types(packed_BTP.dtype, torch.float32)
    streams = packed_BTP.to(wide).chunk(num_streams(form), dim=-1)
    if decay_BTD is not None:
        decay_BTD = decay_BTD.to(wide)
    m_BTD = _running_maximum(streams[-1], state_BD.to(wide), decay_BTD)
    if form == "scan":
        y_BTD = m_BTD
    elif form == "v8":
        y_BTD = (streams[0] * m_BTD + streams[1]) * m_BTD
    else:
        y_BTD = (m_BTD + streams[1]) * m_BTD + streams[0]
    return y_BTD.to(packed_BTP.dtype), m_BTD[:, -1]


def _running_maximum(d_BTD: Tensor, state_BD: Tensor, decay_BTD: Tensor | None) -> Tensor:
    if decay_BTD is None:
        if d_BTD.shape[1] == 1 and not torch.is_grad_enabled():  # torch.maximum would split the gradient of a tie
            return torch.maximum(d_BTD, state_BD.unsqueeze(1))
        with_state_BSD = torch.cat([state_BD.unsqueeze(1), d_BTD], dim=1)
        return with_state_BSD.cummax(dim=1).values[:, 1:]
    m_BD, maxima = state_BD, []
    for d_BD, decay_BD in zip(d_BTD.unbind(1), decay_BTD.unbind(1), strict=True):
        faded_BD = m_BD + decay_BD
        m_BD = torch.where((d_BD >= faded_BD) | d_BD.isnan(), d_BD, faded_BD)
        maxima.append(m_BD)
    return torch.stack(maxima, dim=1)

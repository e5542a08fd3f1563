"""Maxplus: V8's mixer with a running maximum that forgets.

    m_t = max(m_{t-1} - f_t, d_t),   u_t = ((a_t + b_t) m_t + c_t) m_t

This is a linear recurrence over the max-plus semiring: the real numbers and minus infinity, with the maximum as its sum
and the sum as its product. In these terms m_t = (-f_t) m_{t-1} + d_t, a gated linear recurrence with forget gate -f_t
and input d_t. It shares their properties: steps compose, a sequence is a scan, and the state is one number per channel.
Unrolled, m_t is the largest of d_s - (f_{s+1} + ... + f_t): a large value stays until a later one exceeds what is left
of it. 1 / f is a channel's time scale: the number of tokens in which the maximum decays by 1.

V8 is the case f = 0. Its maximum never decays, so it does not record when a value was seen, and its state grows with
the sequence. With f > 0 the state stays in the range of its inputs at any length.

Source: the recurrence itself, sequential or in chunks, is in ops/max_scan; semirings in recurrences: Baccelli et al.,
Synchronization and Linearity (1992), chapter 3. A decay that depends on the token follows the gates of linear
recurrences (minGRU, arXiv 2410.01201; Mamba, arXiv 2312.00752).
"""

# B batch, T time, D width, P packed: the streams side by side

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.config import Positive, validated
from samout_train.models.layers import Linear
from samout_train.models.samout import project_streams
from samout_train.ops.max_scan import max_mix

Decay = Literal["none", "learned", "token"]


class MaxPlus(nn.Module):
    """V8's mixer over a maximum that decays by f at each token.

    Args:
        hidden_size: Width D.
        num_heads: Accepted as by V8; has no effect.
        decay: The form of f. `none`: 0, which is V8. `learned`: softplus of one parameter per channel. `token`:
            softplus(W x_t + b), per channel and token.
        decay_at_start: Initial f of a learned decay, and softplus(b) of a token's.
    """

    branches: ClassVar[Mapping[str, int]] = {"a+b": 0, "c": 1, "decay": 3}

    @validated
    def __init__(
        self, *, hidden_size: int, num_heads: int, decay: Decay, decay_at_start: Annotated[float, Positive]
    ) -> None:
        super().__init__()
        self.projection = Linear(hidden_size, 4 * hidden_size, bias=False, parts=[hidden_size] * 4)
        self.decay = decay
        before_softplus = decay_at_start + math.log(-math.expm1(-decay_at_start))
        if decay == "learned":
            self.decay_D = nn.Parameter(torch.full((hidden_size,), before_softplus))
        elif decay == "token":
            self.decay_projection = Linear(hidden_size, hidden_size)
            nn.init.constant_(self.decay_projection.bias, before_softplus)

    def forward(self, x_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mix (B, T, D); the state (B, D) is the decayed maximum."""
        return max_mix(self._streams(x_BTD), state_BD, self._added(x_BTD), form="v8")

    def project(self, x_BTD: Tensor) -> Tensor:
        """Return the streams a + b, c and d and the decay f side by side; f is 0 for `decay=none`."""
        added_BTD, decay_BTD = self._added(x_BTD), torch.zeros_like(x_BTD)
        if added_BTD is not None:
            decay_BTD = -added_BTD
        return torch.cat([self._streams(x_BTD), decay_BTD], dim=-1)

    def mix(self, packed_BTP: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the mixed sequence and the next state, computed from the streams and the decay."""
        width = packed_BTP.shape[-1] // 4
        return max_mix(packed_BTP[..., : 3 * width], state_BD, -packed_BTP[..., 3 * width :], form="v8")

    def _streams(self, x_BTD: Tensor) -> Tensor:
        return project_streams(x_BTD, self.projection.weight, 4, lambda a, b, c, d: (a + b, c, d))

    def _added(self, x_BTD: Tensor) -> Tensor | None:
        """Return -f (B, T, D); None for `decay=none`."""
        if self.decay == "none":
            return None
        if self.decay == "token":
            return -F.softplus(self.decay_projection(x_BTD))
        return -F.softplus(self.decay_D).to(x_BTD.dtype).expand(x_BTD.shape)

    def forward_flops_per_token(self) -> int:
        """Return the operations of the matrix products for one of many tokens: three streams and a token's decay."""
        products = 3
        if self.decay == "token":
            products += 1
        return 2 * products * self.projection.in_features**2

    def state_bytes(self, length: int) -> int:
        """Return the bytes of a state: one float32 per channel at any length."""
        return 4 * self.projection.in_features

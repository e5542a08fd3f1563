"""SamOut V1: the MaxState mixer and a head tied to the embedding.

Source: the published SamOut V1 program. What differs here: its three D x D projections lie in one 3D x D matrix, which
is one product instead of three and changes no number.
"""

# B batch, T time, D width, H heads, K width per head

import math

from torch import Tensor, nn

from samout_train.models.linear import Linear
from samout_train.ops.max_scan import max_scan


class MaxState(nn.Module):
    """a, b, c = W x; m_t = max over s <= t of (a_s + b_s) / sqrt(K); u = (m + c) * m + b.

    Args:
        hidden_size: Width D.
        num_heads: Heads H: the maximum is scaled by 1 / sqrt(D / H).
    """

    def __init__(self, *, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.projection = Linear(hidden_size, 3 * hidden_size, bias=False)
        self.scale = 1 / math.sqrt(hidden_size / num_heads)

    def forward(self, x_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mixes (B, T, D); the state (B, D) is the scaled maximum so far."""
        a_BTD, b_BTD, c_BTD = self.projection(x_BTD).chunk(3, dim=-1)
        m_BTD, state_BD = max_scan((a_BTD + b_BTD) * self.scale, state_BD)
        return (m_BTD + c_BTD) * m_BTD + b_BTD, state_BD

    def state_bytes(self, length: int) -> int:
        """One float32 per channel, whatever the length."""
        return 4 * self.projection.in_features

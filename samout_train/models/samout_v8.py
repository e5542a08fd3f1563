"""SamOut V8: the MaxStateSuper mixer, one combined projection, and a head of its own.

Source: the published SamOut V8 program. The heads of that program only reshape, which changes no number, so the number
of heads is accepted and has no effect.
"""

# B batch, T time, D width

from torch import Tensor, nn

from samout_train.models.linear import Linear
from samout_train.ops.max_scan import max_scan


class MaxStateSuper(nn.Module):
    """a, b, c, d = W x, in this order; m_t = max over s <= t of d_s; u = ((a + b) * m + c) * m.

    Args:
        hidden_size: Width D.
        num_heads: Accepted because it was published; changes nothing.
    """

    def __init__(self, *, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.projection = Linear(hidden_size, 4 * hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mixes (B, T, D); the state (B, D) is the maximum so far."""
        a_BTD, b_BTD, c_BTD, d_BTD = self.projection(x_BTD).chunk(4, dim=-1)
        m_BTD, state_BD = max_scan(d_BTD, state_BD)
        return ((a_BTD + b_BTD) * m_BTD + c_BTD) * m_BTD, state_BD

    def state_bytes(self, length: int) -> int:
        """One float32 per channel, whatever the length."""
        return 4 * self.projection.in_features

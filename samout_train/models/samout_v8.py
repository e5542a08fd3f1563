"""SamOut V8: the MaxStateSuper mixer, one combined projection, and a head of its own.

Source: the published SamOut V8 program. The heads of that program only reshape, which changes no number, so the number
of heads is accepted and has no effect. a and b enter as a + b alone: x is multiplied by the sum of their matrices.
"""

# B batch, T time, D width, P packed: the streams side by side

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from samout_train.models.linear import Linear
from samout_train.models.streams import project_streams
from samout_train.ops.max_scan import max_mix


class MaxStateSuper(nn.Module):
    """a, b, c, d = W x, in this order; m_t = max over s <= t of d_s; u = ((a + b) * m + c) * m.

    Args:
        hidden_size: Width D.
        num_heads: Accepted because it was published; changes nothing.
    """

    state_is_maximum = True
    branches: ClassVar[Mapping[str, int]] = {"a+b": 0, "c": 1}  # without d there is no maximum, and no output

    def __init__(self, *, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.projection = Linear(hidden_size, 4 * hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mixes (B, T, D); the state (B, D) is the maximum so far."""
        return self.mix(self.project(x_BTD), state_BD)

    def project(self, x_BTD: Tensor) -> Tensor:
        """The streams a + b, c and d, side by side."""
        return project_streams(x_BTD, self.projection.weight, 4, lambda a, b, c, d: (a + b, c, d))

    def mix(self, packed_BTP: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """What becomes of the streams."""
        return max_mix(packed_BTP, state_BD, form="v8")

    def forward_flops_per_token(self) -> int:
        """Operations of the product for one of many tokens: three streams."""
        return 2 * 3 * self.projection.in_features**2

    def state_bytes(self, length: int) -> int:
        """One float32 per channel, whatever the length."""
        return 4 * self.projection.in_features

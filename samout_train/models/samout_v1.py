"""SamOut V1: the MaxState mixer and a head tied to the embedding.

Source: the published SamOut V1 program. What differs here: its three D x D projections lie in one 3D x D matrix, and
the sum and the scale that the maximum is taken of are applied to the matrices, which changes no more than rounding.
"""

# B batch, T time, D width, H heads, K width per head, P packed: the streams side by side

import math
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from samout_train.models.linear import Linear
from samout_train.models.streams import project_streams
from samout_train.ops.max_scan import max_mix


class MaxState(nn.Module):
    """a, b, c = W x; m_t = max over s <= t of (a_s + b_s) / sqrt(K); u = (m + c) * m + b.

    Args:
        hidden_size: Width D.
        num_heads: Heads H: the maximum is scaled by 1 / sqrt(D / H).
    """

    state_is_maximum = True
    branches: ClassVar[Mapping[str, int]] = {"b": 0, "c": 1, "m": 2}  # b as it is added, not in the maximum

    def __init__(self, *, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.projection = Linear(hidden_size, 3 * hidden_size, bias=False)
        self.scale = 1 / math.sqrt(hidden_size / num_heads)

    def forward(self, x_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mixes (B, T, D); the state (B, D) is the scaled maximum so far."""
        return self.mix(self.project(x_BTD), state_BD)

    def project(self, x_BTD: Tensor) -> Tensor:
        """The streams b, c and what the maximum is taken of, side by side."""
        return project_streams(x_BTD, self.projection.weight, 3, self._streams)

    def mix(self, packed_BTP: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """What becomes of the streams."""
        return max_mix(packed_BTP, state_BD, form="v1")

    def _streams(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        return b, c, (a + b) * self.scale

    def state_bytes(self, length: int) -> int:
        """One float32 per channel, whatever the length."""
        return 4 * self.projection.in_features

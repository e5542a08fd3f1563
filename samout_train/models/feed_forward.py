"""The feed-forward of the systems that SamOut is compared with."""

# B batch, T time, D width

from collections.abc import Callable
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.models.linear import Linear


class FeedForward(nn.Module):
    """down(dropout(activation(up(x)))), with biases.

    Args:
        hidden_size: Width D.
        ffn_size: Inner width.
        dropout: Dropout between the two.
        activation: `relu` or `gelu`.
    """

    def __init__(self, *, hidden_size: int, ffn_size: int, dropout: float, activation: Literal["relu", "gelu"]) -> None:
        super().__init__()
        self.up = Linear(hidden_size, ffn_size)
        self.down = Linear(ffn_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.activation: Callable[[Tensor], Tensor] = F.relu if activation == "relu" else F.gelu

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Maps (B, T, D) to (B, T, D), each position by itself."""
        return cast(Tensor, self.down(self.dropout(self.activation(self.up(x_BTD)))))

"""Layers that several models are built of: linear, embedding, feed-forward, short causal convolution."""

# B batch, T time, D width, K tokens back, V vocabulary

from collections.abc import Callable
from typing import Annotated, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.config import Size, validated
from samout_train.ops.linear import linear

EmbeddingName = Literal["learned", "one_hot"]
STD = 0.02


class Linear(nn.Linear):
    """x W^T + b; parameters, names and initialisation are torch's."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return linear(input, self.weight, self.bias)


class OneHot(nn.Module):
    """The identity: id n becomes the n-th unit vector; nothing to train.

    Args:
        vocab_size: Number of ids V, and the width of the vectors.
    """

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.embedding_dim = vocab_size
        # A buffer follows the model's dtype and device; it is no weight, so no checkpoint holds it.
        self.register_buffer("identity_VV", torch.eye(vocab_size), persistent=False)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Map (B, T) to (B, T, V)."""
        return cast(Tensor, self.identity_VV)[ids_BT]


def token_embedding(name: EmbeddingName, *, vocab_size: int, size: int, pad_id: int | None) -> nn.Embedding | OneHot:
    """Return an embedding; it has its width as `embedding_dim`.

    Args:
        name: `learned`: normal of standard deviation 0.02, the padding's row zero and kept there. `one_hot`.
        vocab_size: Number of ids V.
        size: Width of a learned one; `one_hot` is V wide.
        pad_id: Id of the padding; None where there is none.
    """
    if name == "one_hot":
        return OneHot(vocab_size)
    embedding = nn.Embedding(vocab_size, size, padding_idx=pad_id)
    draw_small(embedding)
    return embedding


def draw_small(embedding: nn.Embedding) -> None:
    """Draw the weights again, normal of standard deviation 0.02; the padding's row is zero."""
    nn.init.normal_(embedding.weight, std=STD)
    if embedding.padding_idx is not None:
        nn.init.zeros_(embedding.weight[embedding.padding_idx])


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
        self.activation: Callable[[Tensor], Tensor] = F.gelu
        if activation == "relu":
            self.activation = F.relu

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D), each position by itself."""
        return cast(Tensor, self.down(self.dropout(self.activation(self.up(x_BTD)))))


class CausalConvolution(nn.Conv1d):
    """A depthwise convolution of a token with those before it, and SiLU.

    Args:
        hidden_size: Width D.
        size: Tokens that it takes together, the token itself and `size - 1` before it.
    """

    @validated
    def __init__(self, *, hidden_size: int, size: Annotated[int, Size]) -> None:
        super().__init__(hidden_size, hidden_size, size, groups=hidden_size)

    def forward(self, x_BTD: Tensor, tokens_BKD: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Map each token, seeing itself and those before it.

        Args:
            x_BTD: Input, T at least 1.
            tokens_BKD: The inputs before it, as the call before returned them; None for zeros.

        Returns:
            (y_BTD, tokens_BKD): The output, and the last inputs.

        Raises:
            ValueError: if there are tokens of another shape.
        """
        batch, time, width = x_BTD.shape
        wanted = (batch, self.kernel_size[0] - 1, width)
        if tokens_BKD is None:
            tokens_BKD = x_BTD.new_zeros(wanted)
        elif tokens_BKD.shape != wanted:
            raise ValueError(f"tokens_BKD {tuple(tokens_BKD.shape)} must be {wanted} for an input {tuple(x_BTD.shape)}")
        whole_BSD = torch.cat([tokens_BKD.to(x_BTD.dtype), x_BTD], dim=1)
        # Elementwise, so that the length chooses no algorithm, and about as fast as conv1d: 12 x 64 tokens of width 144
        # on two CPU cores, both passes, 1.4 to 2.7 ms against 1.5 to 1.6.
        y_BTD = x_BTD.new_zeros(())
        if self.bias is not None:
            y_BTD = self.bias
        for index, weight_D in enumerate(self.weight[:, 0].unbind(1)):
            y_BTD = y_BTD + whole_BSD[:, index : index + time] * weight_D
        return F.silu(y_BTD), whole_BSD[:, time:]

    def state_bytes(self) -> int:
        """Return the bytes of a state: one float32 per channel and token that it looks back at."""
        return 4 * (self.kernel_size[0] - 1) * self.in_channels

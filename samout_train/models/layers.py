"""Layers that several models share: linear, embedding, feed-forward, short causal convolution."""

# B batch, T time, D width, K tokens back, V vocabulary

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.config import Size, validated
from samout_train.ops.causal_convolution import convolved, convolved_reference
from samout_train.ops.linear import linear

EmbeddingName = Literal["learned", "one_hot"]
STD = 0.02


class Linear(nn.Linear):
    """x W^T + b, with torch's parameters, names and initialisation.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether a bias is added.
        parts: Output widths of the projections stacked in the weight; empty for a single matrix. Results do not depend
            on them, but an optimizer that updates a matrix as a whole does.

    Attributes:
        drop_connect: Drops weights in training (samout_train.models.regularisation); None to drop none.
    """

    drop_connect: nn.Dropout | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, parts: Sequence[int] = ()) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.parts = list(parts)
        self.drop_connect = None

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return linear(input, self.weight_of_pass(), self.bias)

    def weight_of_pass(self) -> Tensor:
        """Return the weight for one forward pass. With dropped elements it is a new tensor without weight copies."""
        if self.drop_connect is None:
            return self.weight
        dropped_NK: Tensor = self.drop_connect(self.weight)
        return dropped_NK


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm, computed in the precision of its weights and rounded once to that of its input.

    torch warns if the input has another precision, as most inputs have under autocast.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class OneHot(nn.Module):
    """An embedding without parameters: id n becomes the n-th unit vector of width V."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.embedding_dim = vocab_size
        # A buffer follows the model's dtype and device. It is not a weight, so checkpoints leave it out.
        self.register_buffer("identity_VV", torch.eye(vocab_size), persistent=False)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Map (B, T) to (B, T, V)."""
        return cast(Tensor, self.identity_VV)[ids_BT]


def token_embedding(name: EmbeddingName, *, vocab_size: int, size: int, pad_id: int | None) -> nn.Embedding | OneHot:
    """Return an embedding; `embedding_dim` is its width.

    Args:
        name: `learned` starts from N(0, 0.02^2), with a padding row that stays zero; `one_hot` has no parameters.
        vocab_size: Number of ids V.
        size: Width of a learned embedding; `one_hot` is V wide.
        pad_id: Id of the padding token; None for no padding.
    """
    if name == "one_hot":
        return OneHot(vocab_size)
    embedding = nn.Embedding(vocab_size, size, padding_idx=pad_id)
    draw_small(embedding)
    return embedding


def draw_small(embedding: nn.Embedding) -> None:
    """Redraw the weights from N(0, 0.02^2); the padding row is zero."""
    nn.init.normal_(embedding.weight, std=STD)
    if embedding.padding_idx is not None:
        nn.init.zeros_(embedding.weight[embedding.padding_idx])


class FeedForward(nn.Module):
    """down(dropout(activation(up(x)))), with biases.

    Args:
        hidden_size: Width D.
        ffn_size: Inner width.
        dropout: Dropout between the two matrices.
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
        """Map (B, T, D) to (B, T, D), each position separately."""
        return cast(Tensor, self.down(self.dropout(self.activation(self.up(x_BTD)))))


class CausalConvolution(nn.Conv1d):
    """A depthwise convolution over a token and the tokens before it, followed by SiLU.

    Args:
        hidden_size: Width D.
        size: Width of the kernel: the token itself and the `size - 1` tokens before it.
        bias: Whether a bias is added for each channel.
        silu: Whether SiLU follows.
        feeds_products: Whether only matrix products read the output, which may then be in their precision.
    """

    @validated
    def __init__(
        self,
        *,
        hidden_size: int,
        size: Annotated[int, Size],
        bias: bool = True,
        silu: bool = True,
        feeds_products: bool = False,
    ) -> None:
        super().__init__(hidden_size, hidden_size, size, groups=hidden_size, bias=bias)
        self.silu, self.feeds_products = silu, feeds_products

    def forward(self, x_BTD: Tensor, tokens_BKD: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Convolve each token with the tokens before it.

        Args:
            x_BTD: Input, T at least 1.
            tokens_BKD: The last inputs, as returned by the previous call; None for zeros.

        Returns:
            (y_BTD, tokens_BKD): The output, and the last inputs.

        Raises:
            ValueError: if tokens_BKD does not fit the input.
        """
        batch, time, width = x_BTD.shape
        before = self.kernel_size[0] - 1
        wanted = (batch, before, width)
        if tokens_BKD is not None and tokens_BKD.shape != wanted:
            raise ValueError(f"tokens_BKD {tuple(tokens_BKD.shape)} must be {wanted} for an input {tuple(x_BTD.shape)}")
        weight_DK = self.weight.squeeze(1)
        fused_BTD = convolved(
            x_BTD, tokens_BKD, weight_DK, self.bias, silu=self.silu, feeds_products=self.feeds_products
        )
        if fused_BTD is not None and time >= before:
            return fused_BTD, x_BTD[:, time - before :]
        if tokens_BKD is None:
            tokens_BKD = x_BTD.new_zeros(wanted)
        whole_BSD = torch.cat([tokens_BKD.to(x_BTD.dtype), x_BTD], dim=1)
        y_BTD = fused_BTD
        if y_BTD is None:
            y_BTD = convolved_reference(whole_BSD, weight_DK, self.bias, silu=self.silu)
        return y_BTD, whole_BSD[:, time:]

    def state_bytes(self) -> int:
        """Return the bytes of a state: one float32 per channel and earlier token."""
        return 4 * (self.kernel_size[0] - 1) * self.in_channels

"""The layers of the SamOut skeleton: a mixer and a feed-forward in residual connections, as published or as pre-norm.

    published:  u = mixer(x); y = LayerNorm(alpha * ffn(u) + (1 - alpha) * x); x = y + x
    pre:        x = x + mixer(norm(x)); x = x + ffn(norm(x))

With a convolution, the mixer reads what that makes of its input.

Source: the published SamOut V1 and V8 programs; pre-norm: Xiong et al., On Layer Normalization in the Transformer
Architecture (arXiv 2002.04745).
"""

# B batch, T time, D width, F inner width, K tokens back

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from samout_train.models.convolution import CausalConvolution, joined, parts_of
from samout_train.models.linear import Linear
from samout_train.models.mixer import Mixer
from samout_train.models.parts import matrix_flops
from samout_train.models.samout_v1 import MaxState
from samout_train.models.samout_v8 import MaxStateSuper
from samout_train.ops.samout_layer import blended, gated
from samout_train.ops.samout_step import step, takes_step

LayerNorms = Literal["published", "pre"]


class GatedFeedForward(nn.Module):
    """down(up(u) * relu(gate(u))), all three with bias.

    Args:
        hidden_size: Width D of input and output.
        ffn_size: Inner width.
    """

    def __init__(self, *, hidden_size: int, ffn_size: int) -> None:
        super().__init__()
        self.up = Linear(hidden_size, ffn_size)
        self.gate = Linear(hidden_size, ffn_size)
        self.down = Linear(ffn_size, hidden_size)

    def forward(self, u_BTD: Tensor) -> Tensor:
        """Maps (B, T, D) to (B, T, D), each position by itself."""
        return cast(Tensor, self.down(gated(self.up(u_BTD), self.gate(u_BTD))))


class SamOutLayer(nn.Module):
    """One layer: mix, feed forward, and the two or one residual connections around them.

    Args:
        mixer: The token mixer.
        hidden_size: Width D.
        ffn_size: Inner width of the feed-forward.
        dropout: Dropout of the feed-forward's output.
        norm: `published`: the feed-forward's output is blended with the input by the learnable scalar alpha, normalised
            and added. `pre`: mixer and feed-forward each read a norm of what they are added to.
        convolution_size: Tokens that a convolution before the mixer takes together; 0 for none.
    """

    alpha: Tensor

    def __init__(
        self,
        *,
        mixer: nn.Module,
        hidden_size: int,
        ffn_size: int,
        dropout: float,
        norm: LayerNorms = "published",
        convolution_size: int = 0,
    ) -> None:
        super().__init__()
        self.mixer = mixer
        self.feed_forward = GatedFeedForward(hidden_size=hidden_size, ffn_size=ffn_size)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(hidden_size)
        published = norm == "published"
        self.register_parameter("alpha", nn.Parameter(torch.tensor(0.5)) if published else None)
        self.feed_forward_norm = None if published else nn.LayerNorm(hidden_size)
        self.convolution = (
            CausalConvolution(hidden_size=hidden_size, size=convolution_size) if convolution_size else None
        )

    def forward(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Returns the layer's output (B, T, D) and its next state: the mixer's, or a ConvolvedState."""
        dropout = self.dropout.p if self.training else 0.0
        if self._takes_step(x_BTD, dropout):
            return self._step(x_BTD, state)
        if self.feed_forward_norm is not None:
            u_BTD, state = self._mixed(self.norm(x_BTD), state)
            x_BTD = x_BTD + u_BTD
            return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD))), state
        u_BTD, state = self._mixed(x_BTD, state)
        return blended(self.feed_forward(u_BTD), x_BTD, self.alpha, self.norm, dropout), state

    def _mixed(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        mixer_state, tokens_BKD = parts_of(state)
        if self.convolution is not None:
            x_BTD, tokens_BKD = self.convolution(x_BTD, tokens_BKD)
        u_BTD, mixer_state = self.mixer(x_BTD, mixer_state)
        return u_BTD, joined(mixer_state, tokens_BKD)

    @property
    def is_published(self) -> bool:
        """Whether the published programs have such a layer around their mixers."""
        return self.feed_forward_norm is None and self.convolution is None

    def _takes_step(self, x_BTD: Tensor, dropout: float) -> bool:
        # By exact type: a mixer derived from these two may do something else.
        return self.is_published and type(self.mixer) in (MaxState, MaxStateSuper) and not dropout and takes_step(x_BTD)

    def _step(self, x_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        mixer, inner, x_BD = cast(MaxState | MaxStateSuper, self.mixer), self.feed_forward, x_BTD[:, 0]
        if state_BD is None:
            state_BD = torch.full_like(x_BD, -torch.inf)
        scale = mixer.scale if isinstance(mixer, MaxState) else None
        weights = (mixer.projection.weight, scale, inner.up, inner.gate, inner.down, self.norm, self.alpha)
        y_BD, state_BD = step(x_BD, state_BD.to(x_BD.dtype), *weights)
        return y_BD.unsqueeze(1), state_BD

    def forward_flops_per_token(self) -> int:
        """Of the matrix products; a mixer that adds matrices instead of their products says its own."""
        told = getattr(self.mixer, "forward_flops_per_token", None)
        return (matrix_flops(self.mixer) if told is None else told()) + matrix_flops(self.feed_forward)

    def state_bytes(self, length: int) -> int:
        """Bytes of one sequence's state in float32 after `length` tokens."""
        convolution = 0 if self.convolution is None else self.convolution.state_bytes()
        return convolution + cast(Mixer, self.mixer).state_bytes(length)

"""A short causal convolution before a mixer, which shows it what a maximum or a softmax cannot see: who stands next.

    y_t = SiLU(b + sum over k < K of w_k x_{t-k}), for each channel by itself

Source: depthwise and before the mixer, as in Mamba (Gu and Dao, arXiv 2312.00752, figure 3); what it gives attention:
So et al., Primer (arXiv 2109.08668). What differs here: the tokens that it looks back at are a part of the state.
"""

# B batch, T time, D width, K tokens back

from typing import Annotated, Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.config import Size, validated


class ConvolvedState(TypedDict):
    """The state of a layer that has a convolution.

    Args:
        mixer: Its mixer's.
        tokens_BKD: Its convolution's: the last inputs.
    """

    mixer: Any
    tokens_BKD: Tensor


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
        """Maps each token, seeing itself and those before it.

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
        y_BTD = self.bias if self.bias is not None else x_BTD.new_zeros(())
        for index, weight_D in enumerate(self.weight[:, 0].unbind(1)):
            y_BTD = y_BTD + whole_BSD[:, index : index + time] * weight_D
        return F.silu(y_BTD), whole_BSD[:, time:]

    def state_bytes(self) -> int:
        """One float32 per channel and token that it looks back at."""
        return 4 * (self.kernel_size[0] - 1) * self.in_channels


def parts_of(state: Any) -> tuple[Any, Tensor | None]:
    """A layer's state as (its mixer's, its convolution's); None for what there is none of."""
    if isinstance(state, dict) and state.keys() == ConvolvedState.__annotations__.keys():
        return state["mixer"], state["tokens_BKD"]
    return state, None


def joined(mixer_state: Any, tokens_BKD: Tensor | None) -> Any:
    """What `parts_of` takes apart: without a convolution, the mixer's state is the layer's."""
    return mixer_state if tokens_BKD is None else ConvolvedState(mixer=mixer_state, tokens_BKD=tokens_BKD)

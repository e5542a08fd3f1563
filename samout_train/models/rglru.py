"""Mix by RG-LRU, the mixer of Hawk: an elementwise linear recurrence with a decay gated by the token.

    r = sigmoid(W_r u + b_r), i = sigmoid(W_i u + b_i);   log a = -8 softplus(Lambda) r
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t u_t);        output = W_o (GELU(W_g x) * h),  u = convolution(W_u x)

W_r and W_i are block-diagonal, with one block per head. With `output_gate=none` the output is W_o h.

Source: De et al., Griffin (arXiv 2402.19427), sections 2.3 and 2.4 and appendix A: the decay at r = 1 starts between
0.9 and 0.999, uniform in its square. And the program of RecurrentGemma: the gradient of the square root is at most
1,000; W_r and W_i start from N(0, 1 / K), W_u and W_g from N(0, 1 / D), W_o from N(0, 2 / (L D)) with L layers, the
convolution over C tokens from N(0, 0.01 / C), biases at 0. Differences: W_u, W_g and W_o have no biases; the
recurrence has the width D, where the published models have about 4/3 of it; the first token has its square root, where
the program has 1; in the program, the 8th root of the decay starts between 0.9 and 0.999.
"""

# B batch, T time, D width, H heads, K width of a head: D / H

import math
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from samout_train.config import SizeOrNone, validated
from samout_train.models.layers import CausalConvolution, Linear
from samout_train.models.state import LayerState, as_layer_state
from samout_train.ops.semiring_scan import linear_scan

POWER = 8.0
LEAST_DECAY, LARGEST_DECAY = 0.9, 0.999  # initial range of a at r = 1
STEEPEST_ROOT = 1000.0
CONVOLUTION_STD = 0.1  # divided by the root of its number of tokens


class RGLRU(nn.Module):
    """Mix by a real-gated linear recurrent unit, with both branches or with the recurrent branch alone.

    Args:
        hidden_size: Width D.
        num_heads: Blocks of the gates' matrices.
        convolution_size: Tokens in the kernel of the convolution before the recurrence; 0 for no convolution.
        output_gate: `gelu`; or `none`, which leaves out the branch of W_g.
    """

    @validated
    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        convolution_size: Annotated[int, SizeOrNone],
        output_gate: Literal["gelu", "none"] = "gelu",
    ) -> None:
        super().__init__()
        self.num_heads, self.has_output_gate = num_heads, output_gate != "none"
        widths = [hidden_size] * (1 + self.has_output_gate)
        self.projection = Linear(hidden_size, sum(widths), bias=False, parts=widths)
        self.convolution: CausalConvolution | None = None
        if convolution_size:
            self.convolution = CausalConvolution(hidden_size=hidden_size, size=convolution_size, silu=False)
            nn.init.normal_(self.convolution.weight, std=CONVOLUTION_STD / math.sqrt(convolution_size))
            nn.init.zeros_(cast(Tensor, self.convolution.bias))
        size = hidden_size // num_heads
        self.recurrence_gate_HKK = nn.Parameter(torch.randn(num_heads, size, size) / math.sqrt(size))
        self.input_gate_HKK = nn.Parameter(torch.randn(num_heads, size, size) / math.sqrt(size))
        self.recurrence_bias_D = nn.Parameter(torch.zeros(hidden_size))
        self.input_bias_D = nn.Parameter(torch.zeros(hidden_size))
        squared_D = torch.empty(hidden_size).uniform_(LEAST_DECAY**2, LARGEST_DECAY**2)
        softplus_D = -squared_D.log() / (2 * POWER)  # of Lambda
        self.lambda_D = nn.Parameter(softplus_D + torch.log(-torch.expm1(-softplus_D)))
        self.out = Linear(hidden_size, hidden_size, bias=False)
        for matrix in (self.projection, self.out):
            nn.init.normal_(matrix.weight, std=1 / math.sqrt(hidden_size))

    def at_depth(self, index: int, num_layers: int) -> None:
        """Scale the output matrix by the root of 2 / the number of layers."""
        with torch.no_grad():
            self.out.weight.mul_(math.sqrt(2 / num_layers))

    def forward(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Mix (B, T, D); the memory of the state is h, (B, D)."""
        h_BD, tokens_BKD = state, None
        *gates, u_BTD = self.projection(x_BTD).split(self.out.in_features, dim=-1)
        dtype = u_BTD.dtype
        if self.convolution is not None:
            h_BD, tokens_BKD = as_layer_state(state)
            u_BTD, tokens_BKD = self.convolution(u_BTD, tokens_BKD)
        u_BTD = u_BTD.to(self.lambda_D.dtype)
        r_BTD = (self._by_blocks(u_BTD, self.recurrence_gate_HKK) + self.recurrence_bias_D).sigmoid()
        i_BTD = (self._by_blocks(u_BTD, self.input_gate_HKK) + self.input_bias_D).sigmoid()
        log_a_BTD = -POWER * F.softplus(self.lambda_D) * r_BTD
        root_BTD = cast(Tensor, _Root.apply(-torch.expm1(2 * log_a_BTD)))
        h_BTD, h_BD = linear_scan(log_a_BTD.exp(), root_BTD * i_BTD * u_BTD, h_BD)
        h_BTD = h_BTD.to(dtype)
        for gate_BTD in gates:  # one or none
            h_BTD = F.gelu(gate_BTD) * h_BTD
        y_BTD = self.out(h_BTD)
        if self.convolution is None:
            return y_BTD, h_BD
        return y_BTD, LayerState(h_BD, tokens_BKD)

    def _by_blocks(self, u_BTD: Tensor, weight_HKK: Tensor) -> Tensor:
        u_HMK = u_BTD.flatten(0, 1).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)
        return (u_HMK @ weight_HKK).transpose(0, 1).reshape(u_BTD.shape).to(u_BTD.dtype)

    def operator_flops(self, length: int) -> int:
        """Return the operations of the block-diagonal products for one token."""
        return 2 * (self.recurrence_gate_HKK.numel() + self.input_gate_HKK.numel())

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state in float32, whatever the length."""
        of_memory = 4 * self.out.in_features
        if self.convolution is None:
            return of_memory
        return of_memory + self.convolution.state_bytes()


class _Root(torch.autograd.Function):
    """Compute the square root, with a bounded gradient: it is steep near a = 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return sqrt(x)."""
        root = x.clamp(min=0).sqrt()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return the gradient of x."""
        (root,) = ctx.saved_tensors
        return grad * (0.5 / root).clamp(max=STEEPEST_ROOT)

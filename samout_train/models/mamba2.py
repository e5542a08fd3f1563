"""Mix by Mamba-2: linear attention with one decay per head, and keys and queries shared by all heads.

    S_t = a_t S_{t-1} + (Delta_t B_t) x_t^T;   y_t = S_t^T C_t + D x_t;   output = W_o RMSNorm(y * SiLU(z))
    x, B, C = SiLU(convolution(W x));   Delta = softplus(W_d x + b);   a = exp(-exp(A) Delta)

With `output_gate=none` the output is W_o RMSNorm(y).

Source: Dao and Gu, Transformers are SSMs (arXiv 2405.21060), sections 6 and 7, and its program: A starts as log U(1,
16), b as the inverse softplus of exp U(log 0.001, log 0.1), D at 1; as vectors, they have no weight decay. Matrices
start as torch draws them, W_o divided by the root of the number of layers.
"""

# B batch, T time, D width, H heads, K width of the shared keys, V of a head's values

import math
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.config import Positive, Size, SizeOrNone, validated
from samout_train.models.deltanet import drawn_step_bias
from samout_train.models.heads import Gate, Streams, chunk_flops, head_size, in_heads, opened
from samout_train.models.layers import Linear, RMSNorm
from samout_train.ops.linear_attention import CHUNK, linear_attention

SLOWEST_RATE, FASTEST_RATE = 1.0, 16.0  # initial range of exp(A)


class Mamba2(nn.Module):
    """Mix by a state-space model with one decay per head.

    Args:
        hidden_size: Width D.
        num_heads: Heads H.
        state_size: Width K of B and C.
        value_share: Width of x of all heads as a share of D.
        convolution_size: Kernel width, in tokens, of the convolution of x, B and C; 0 for none.
        output_gate: Function of z that multiplies y before the norm: `silu`, `sigmoid`; or `none`, which leaves z out.
    """

    @validated
    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        state_size: Annotated[int, Size],
        value_share: Annotated[float, Positive],
        convolution_size: Annotated[int, SizeOrNone],
        output_gate: Gate = "silu",
    ) -> None:
        super().__init__()
        self.gate_name, self.has_output_gate = output_gate, output_gate != "none"
        self.num_heads, self.key_size = num_heads, state_size
        self.value_size = head_size(value_share, hidden_size, num_heads)
        values = num_heads * self.value_size
        widths = [values, state_size, state_size, num_heads]
        if self.has_output_gate:
            widths.insert(3, values)
        self.streams = Streams(
            hidden_size=hidden_size,
            widths=widths,
            convolved=3,
            convolution_size=convolution_size,
            bias=True,
        )
        rate_H = torch.empty(num_heads).uniform_(SLOWEST_RATE, FASTEST_RATE)
        self.log_rate_H = nn.Parameter(rate_H.log())
        self.step_bias_H = nn.Parameter(drawn_step_bias(num_heads))
        self.skip_H = nn.Parameter(torch.ones(num_heads))
        self.norm = RMSNorm(values, eps=1e-5)
        self.out = Linear(values, hidden_size, bias=False)

    def at_depth(self, index: int, num_layers: int) -> None:
        """Divide the output matrix by the root of the number of layers."""
        with torch.no_grad():
            self.out.weight.div_(math.sqrt(num_layers))

    def forward(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Mix (B, T, D); the memory of the state is (B, H, K, V)."""
        memory_BHKV, tokens = self.streams.state_before(state)
        (x, keys, queries, *gates, step), tokens = self.streams(x_BTD, tokens)
        x_BHTV, dtype = in_heads(x, self.num_heads), self.log_rate_H.dtype
        step_BHT = F.softplus(step.to(dtype) + self.step_bias_H).transpose(1, 2)
        log_decay_BHT = -self.log_rate_H.exp()[:, None] * step_BHT
        k_BHTK = keys[:, None].to(dtype) * step_BHT[..., None]
        q_BHTK = queries[:, None].to(dtype).expand_as(k_BHTK)
        y_BHTV, memory_BHKV = linear_attention(q_BHTK, k_BHTK, x_BHTV, log_decay_BHT, memory_BHKV)
        y_BHTV = y_BHTV + self.skip_H[:, None, None] * x_BHTV
        y_BTP = y_BHTV.transpose(1, 2).flatten(2)
        for z_BTP in gates:  # one or none
            y_BTP = y_BTP * opened(z_BTP, self.gate_name)
        return self.out(self.norm(y_BTP)), self.streams.state_after(memory_BHKV, tokens)

    def operator_flops(self, length: int) -> int:
        """Return the operations of the recurrence's products for one token in a row of `length`."""
        return self.num_heads * chunk_flops(length, CHUNK, keys=self.key_size, values=self.value_size, way="head")

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state in float32, whatever the length."""
        return 4 * self.num_heads * self.key_size * self.value_size + self.streams.state_bytes()

"""Mix by GLA: linear attention with a decay gated by the token, one for each key channel.

    S_t = Diag(a_t) S_{t-1} + k_t v_t^T;   o_t = S_t^T q_t / sqrt(K);   a = sigmoid(W_2 W_1 x + b)^(1 / 16)
    output = W_o (RMSNorm(o) * SiLU(W_g x))

Source: Yang et al., Gated Linear Attention Transformers with Hardware-Efficient Training (arXiv 2312.06635), section 4:
keys of half the width, W_1 of 16 rows. Matrices start uniform by Xavier with gain 2^-2.5, b at 0, as in its program.
"""

# B batch, T time, D width, H heads, K width of a head's keys, V of its values

import math
from typing import Annotated, Any

from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.config import Positive, Size, SizeOrNone, validated
from samout_train.models.heads import (
    Gate,
    HeadsJoined,
    OutputNorm,
    Streams,
    chunk_flops,
    draw_xavier,
    head_size,
    in_heads,
)
from samout_train.models.layers import Linear
from samout_train.ops.linear_attention import CHUNK, linear_attention

GAIN = 2**-2.5


class GLA(nn.Module):
    """Mix by gated linear attention.

    Args:
        hidden_size: Width D.
        num_heads: Heads H.
        key_share: Width of all heads' keys as a share of D.
        value_share: Width of all heads' values as a share of D.
        gate_rank: Rows of W_1.
        gate_divisor: Divisor of the gate's logarithm: the larger, the slower it forgets.
        convolution_size: Kernel width, in tokens, of a convolution of q, k and v; 0 for none.
        output_norm: `head`, `all` or `none`.
        output_gate: `silu`, `sigmoid` or `none`.
    """

    @validated
    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        key_share: Annotated[float, Positive],
        value_share: Annotated[float, Positive],
        gate_rank: Annotated[int, Size],
        gate_divisor: Annotated[float, Positive],
        convolution_size: Annotated[int, SizeOrNone],
        output_norm: OutputNorm,
        output_gate: Gate,
    ) -> None:
        super().__init__()
        self.has_output_gate = output_gate != "none"
        self.num_heads, self.gate_divisor = num_heads, gate_divisor
        self.key_size = head_size(key_share, hidden_size, num_heads)
        self.value_size = head_size(value_share, hidden_size, num_heads)
        keys, values = num_heads * self.key_size, num_heads * self.value_size
        self.streams = Streams(
            hidden_size=hidden_size, widths=[keys, keys, values], convolved=3, convolution_size=convolution_size
        )
        self.decay_down = Linear(hidden_size, gate_rank, bias=False)
        self.decay_up = Linear(gate_rank, keys)
        self.joined = HeadsJoined(
            hidden_size=hidden_size,
            num_heads=num_heads,
            value_size=self.value_size,
            norm=output_norm,
            gate=output_gate,
        )
        draw_xavier(self.streams, GAIN)
        for module in (self.decay_down, self.decay_up, self.joined.gate, self.joined.out):
            if module is not None:
                nn.init.xavier_uniform_(module.weight, gain=GAIN)
        nn.init.zeros_(self.decay_up.bias)

    def forward(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Mix (B, T, D); the memory of the state is (B, H, K, V)."""
        memory_BHKV, tokens = self.streams.state_before(state)
        (q, k, v), tokens = self.streams(x_BTD, tokens)
        q_BHTK, k_BHTK, v_BHTV = (in_heads(stream, self.num_heads) for stream in (q, k, v))
        gate_BTP = self.decay_up(self.decay_down(x_BTD)).to(self.decay_up.weight.dtype)
        log_decay_BTP = F.logsigmoid(gate_BTP) / self.gate_divisor
        o_BHTV, memory_BHKV = linear_attention(
            q_BHTK / math.sqrt(self.key_size), k_BHTK, v_BHTV, in_heads(log_decay_BTP, self.num_heads), memory_BHKV
        )
        return self.joined(o_BHTV, x_BTD), self.streams.state_after(memory_BHKV, tokens)

    def operator_flops(self, length: int) -> int:
        """Return the operations of the recurrence's products for one token in a row of `length`."""
        return self.num_heads * chunk_flops(length, CHUNK, keys=self.key_size, values=self.value_size, way="channel")

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state in float32, whatever the length."""
        return 4 * self.num_heads * self.key_size * self.value_size + self.streams.state_bytes()

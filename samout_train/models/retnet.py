"""Mix by RetNet: linear attention with a constant decay per head and rotary positions.

    S_t = a_h S_{t-1} + k_t v_t^T;   o_t = S_t^T q_t / sqrt(K);   a_h = 1 - 2^(-5 - h),  h = 0, 1, 2 ...
    output = W_o (RMSNorm(o) * SiLU(W_g x))

Queries and keys are turned by rotary positions, so that their product depends on the distance between them.

Source: Sun et al., Retentive Network (arXiv 2307.08621), sections 2.1 and 2.2: values of twice the width. Matrices
start uniform by Xavier with gain 2^-2.5, W_o with gain 2^-1, as in its program. Differences: the norm of a head has
weights; positions turn the pair (k, k + K / 2) of a head; scores are not divided by the sum of their decays.
"""

# B batch, T time, D width, H heads, K width of a head's keys, V of its values

import math
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from samout_train.config import Positive, SizeOrNone, validated
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
from samout_train.ops.elementwise import turned, turned_heads
from samout_train.ops.linear_attention import CHUNK, linear_attention
from samout_train.runtime import float64_place

GAIN, GAIN_OUT = 2**-2.5, 2**-1


class Retained(NamedTuple):
    """Hold the memory of a retention.

    Args:
        memory_BHKV: S.
        position: Position of the next token, 0-d int64.
    """

    memory_BHKV: Tensor
    position: Tensor


torch.serialization.add_safe_globals([Retained])


class RetNet(nn.Module):
    """Mix by retention.

    Args:
        hidden_size: Width D.
        num_heads: Heads H; later heads have longer memory.
        key_share: Width of all heads' keys as a share of D.
        value_share: Width of all heads' values as a share of D.
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
        convolution_size: Annotated[int, SizeOrNone],
        output_norm: OutputNorm,
        output_gate: Gate,
    ) -> None:
        super().__init__()
        self.has_output_gate = output_gate != "none"
        self.num_heads = num_heads
        self.key_size = head_size(key_share, hidden_size, num_heads)
        self.value_size = head_size(value_share, hidden_size, num_heads)
        keys, values = num_heads * self.key_size, num_heads * self.value_size
        self.streams = Streams(
            hidden_size=hidden_size, widths=[keys, keys, values], convolved=3, convolution_size=convolution_size
        )
        self.joined = HeadsJoined(
            hidden_size=hidden_size,
            num_heads=num_heads,
            value_size=self.value_size,
            norm=output_norm,
            gate=output_gate,
        )
        draw_xavier(self.streams, GAIN)
        if self.joined.gate is not None:
            nn.init.xavier_uniform_(self.joined.gate.weight, gain=GAIN)
        nn.init.xavier_uniform_(self.joined.out.weight, gain=GAIN_OUT)

    def forward(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Mix (B, T, D); the memory of the state is a `Retained`."""
        retained, tokens = self.streams.state_before(state)
        streams, tokens = self.streams(x_BTD, tokens)
        q_BHTK, k_BHTK, v_BHTV = (in_heads(stream, self.num_heads) for stream in streams)
        if retained is None:
            retained = Retained(None, torch.zeros((), dtype=torch.int64, device=x_BTD.device))  # type: ignore[arg-type]
        time = x_BTD.shape[1]
        if retained.memory_BHKV is None and (of_start := turned_heads(q_BHTK, k_BHTK)) is not None:
            q_BHTK, k_BHTK, _ = of_start
        else:
            position_T = retained.position + torch.arange(time, device=x_BTD.device)
            q_BHTK, k_BHTK = turned(q_BHTK, position_T), turned(k_BHTK, position_T)
        head_H = torch.arange(self.num_heads, dtype=torch.float64, device=float64_place(x_BTD.device))
        log_decay_H = torch.log1p(-torch.exp2(-5 - head_H)).to(torch.promote_types(q_BHTK.dtype, torch.float32))
        log_decay_H = log_decay_H.to(x_BTD.device)
        o_BHTV, memory_BHKV = linear_attention(
            q_BHTK / math.sqrt(self.key_size),
            k_BHTK,
            v_BHTV,
            log_decay_H[None, :, None].expand(1, self.num_heads, time),
            retained.memory_BHKV,
        )
        after = Retained(memory_BHKV, retained.position + time)
        return self.joined(o_BHTV, x_BTD), self.streams.state_after(after, tokens)

    def operator_flops(self, length: int) -> int:
        """Return the operations of the recurrence's products for one token in a row of `length`."""
        return self.num_heads * chunk_flops(length, CHUNK, keys=self.key_size, values=self.value_size, way="head")

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state in float32, whatever the length."""
        return 4 * self.num_heads * self.key_size * self.value_size + self.streams.state_bytes()

"""Mix by HGRN2: linear attention in which each channel adds as much as it forgets.

    f = l + (1 - l) sigmoid(W_f x);   S_t = Diag(f_t) S_{t-1} + (1 - f_t) v_t^T;   o_t = S_t^T SiLU(W_q x)_t
    output = W_o RMSNorm(o)

l, a lower bound of the forget gate, rises with depth from 0 in the first layer, so that upper layers remember longer.

Source: Qin et al., HGRN2: Gated Linear RNNs with State Expansion (arXiv 2404.07904), section 3.2; the bound: Qin et
al., Hierarchically Gated Recurrent Neural Network (arXiv 2311.04823), section 3.2. Matrices as torch draws them.
Difference: the bound of layer n of L is fixed at n / L, the initial value of the published bound, which is a
cumulative softmax over layers.
"""

# B batch, T time, D width, H heads, K width of a head's keys, V of its values

from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.config import Positive, SizeOrNone, validated
from samout_train.models.heads import Gate, HeadsJoined, OutputNorm, Streams, chunk_flops, head_size, in_heads
from samout_train.ops.linear_attention import CHUNK, linear_attention


class HGRN2(nn.Module):
    """Mix by a gated linear recurrence with an expanded state.

    Args:
        hidden_size: Width D.
        num_heads: Heads H.
        key_share: Width of all heads' forget gates as a share of D.
        convolution_size: Kernel width, in tokens, of a convolution of W_q x, W_f x and v, without SiLU after it, with
            which no channel could forget more than half; 0 for none.
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
        convolution_size: Annotated[int, SizeOrNone],
        output_norm: OutputNorm,
        output_gate: Gate,
    ) -> None:
        super().__init__()
        self.has_output_gate = output_gate != "none"
        self.num_heads, self.lower_bound = num_heads, 0.0
        self.key_size = head_size(key_share, hidden_size, num_heads)
        self.value_size = hidden_size // num_heads
        keys = num_heads * self.key_size
        self.streams = Streams(
            hidden_size=hidden_size,
            widths=[keys, keys, hidden_size],
            convolved=3,
            convolution_size=convolution_size,
            silu=False,
        )
        self.joined = HeadsJoined(
            hidden_size=hidden_size,
            num_heads=num_heads,
            value_size=self.value_size,
            norm=output_norm,
            gate=output_gate,
        )

    def at_depth(self, index: int, num_layers: int) -> None:
        """Set the lower bound of the forget gate."""
        self.lower_bound = index / num_layers

    def forward(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Mix (B, T, D); the memory of the state is (B, H, K, V)."""
        memory_BHKV, tokens = self.streams.state_before(state)
        streams, tokens = self.streams(x_BTD, tokens)
        q_BHTK, f_BHTK, v_BHTV = (in_heads(stream, self.num_heads) for stream in streams)
        f_BHTK = f_BHTK.to(torch.promote_types(f_BHTK.dtype, torch.float32))
        log_decay_BHTK = F.logsigmoid(f_BHTK)
        if self.lower_bound:
            share = 1 - self.lower_bound
            log_decay_BHTK = torch.log(self.lower_bound + share * f_BHTK.sigmoid())
        k_BHTK = (1 - self.lower_bound) * (-f_BHTK).sigmoid()
        o_BHTV, memory_BHKV = linear_attention(F.silu(q_BHTK), k_BHTK, v_BHTV, log_decay_BHTK, memory_BHKV)
        return self.joined(o_BHTV, x_BTD), self.streams.state_after(memory_BHKV, tokens)

    def operator_flops(self, length: int) -> int:
        """Return the operations of the recurrence's products for one token in a row of `length`."""
        return self.num_heads * chunk_flops(length, CHUNK, keys=self.key_size, values=self.value_size, way="channel")

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state in float32, whatever the length."""
        return 4 * self.num_heads * self.key_size * self.value_size + self.streams.state_bytes()

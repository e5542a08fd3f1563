"""Mix by mLSTM: linear attention with exponential input gates, divided by the sum of the gates.

    S_t = f_t S_{t-1} + exp(i_t) k_t v_t^T;   n_t = f_t n_{t-1} + exp(i_t) k_t
    h_t = S_t^T q_t / max(|n_t . q_t|, 1);   f = sigmoid(w_f x + b_f), i = w_i x + b_i, k divided by sqrt(K)
    output = W_o (RMSNorm(h) * sigmoid(W_g x))

exp(i) has no bound, so S and n are stored divided by exp(m_t), m_t = max(log f_t + m_{t-1}, i_t). This is a running
maximum with decay, the scan that SamOut is built on (ops/max_scan). After the division, S is linear attention with the
log-decay log f_t + m_{t-1} - m_t and the keys exp(i_t - m_t) k_t, where neither the decay nor exp(i_t - m_t) exceeds 1.
n is one more column of S. m changes no output, so it takes no gradient. As in the published program, the divisor has
1e-6 exp(m) more, which counts where n . q and exp(-m) are both nearly 0.

Source: Beck et al., xLSTM (arXiv 2405.04517), section 2.3 and appendix A. w_f and w_i start at 0, b_f evenly spaced
from 3 to 6 over the heads and b_i from N(0, 0.1^2), as in its program; the matrices of q, k, v and W_g from
N(0, 2 / (5 D)) and W_o from N(0, 4 / (L^2 D)) with L layers. Differences: the mixer sits in the same block as the
others, without the up-projection by 2 and without its program's learnable skip around the mixer; the gates i and f read
x, not q, k and v; q, k and v have full matrices, not blocks of 4; the norm is RMSNorm, not LayerNorm of each head.
"""

# B batch, T time, D width, H heads, K width of a head's keys, V of its values, W values and the sum of the gates

import math
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.config import Positive, SizeOrNone, validated
from samout_train.models.heads import Gate, HeadsJoined, OutputNorm, Streams, chunk_flops, head_size, in_heads
from samout_train.models.layers import Linear
from samout_train.ops.linear_attention import CHUNK, linear_attention
from samout_train.ops.max_scan import max_scan

EPSILON = 1e-6
LEAST_FORGET_BIAS, LARGEST_FORGET_BIAS, INPUT_BIAS_STD = 3.0, 6.0, 0.1


class Stabilised(NamedTuple):
    """Hold the memory of an mLSTM, divided by exp(m).

    Args:
        memory_BHKW: S, and n as its last column.
        maximum_BH: m.
    """

    memory_BHKW: Tensor
    maximum_BH: Tensor


torch.serialization.add_safe_globals([Stabilised])


class MLSTM(nn.Module):
    """Mix by an LSTM whose memory is a matrix per head.

    Args:
        hidden_size: Width D.
        num_heads: Heads H.
        key_share: Width of all heads' keys as a share of D.
        value_share: Width of all heads' values as a share of D.
        convolution_size: Kernel width, in tokens, of a convolution of q and k; 0 for none.
        output_norm: `head`, `all` or `none`.
        output_gate: `sigmoid`, `silu` or `none`.
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
            hidden_size=hidden_size, widths=[keys, keys, values], convolved=2, convolution_size=convolution_size
        )
        self.input_gate = Linear(hidden_size, num_heads)
        self.forget_gate = Linear(hidden_size, num_heads)
        nn.init.zeros_(self.input_gate.weight)
        nn.init.normal_(self.input_gate.bias, std=INPUT_BIAS_STD)
        nn.init.zeros_(self.forget_gate.weight)
        with torch.no_grad():
            self.forget_gate.bias.copy_(torch.linspace(LEAST_FORGET_BIAS, LARGEST_FORGET_BIAS, num_heads))
        self.joined = HeadsJoined(
            hidden_size=hidden_size,
            num_heads=num_heads,
            value_size=self.value_size,
            norm=output_norm,
            gate=output_gate,
        )
        for matrix in (self.streams.projection, self.joined.gate):
            if matrix is not None:
                nn.init.normal_(matrix.weight, std=math.sqrt(2 / (5 * hidden_size)))
        nn.init.normal_(self.joined.out.weight, std=2 / math.sqrt(hidden_size))

    def at_depth(self, index: int, num_layers: int) -> None:
        """Divide the output matrix by the number of layers."""
        with torch.no_grad():
            self.joined.out.weight.div_(num_layers)

    def forward(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Mix (B, T, D); the memory of the state is a `Stabilised`."""
        before, tokens = self.streams.state_before(state)
        memory_BHKW, maximum_BH = before or (None, None)
        streams, tokens = self.streams(x_BTD, tokens)
        q_BHTK, k_BHTK, v_BHTV = (in_heads(stream, self.num_heads) for stream in streams)
        dtype = self.input_gate.weight.dtype
        i_BTH = self.input_gate(x_BTD).to(dtype)
        log_f_BTH = F.logsigmoid(self.forget_gate(x_BTD).to(dtype))
        m_BTH, maximum_after_BH = max_scan(i_BTH.detach(), maximum_BH, log_f_BTH.detach())
        if maximum_BH is None:
            maximum_BH = torch.full_like(maximum_after_BH, -torch.inf)
        m_before_BTH = torch.cat([maximum_BH[:, None], m_BTH[:, :-1]], dim=1)
        # Rounding may lift the sum above 0.
        log_decay_BTH = (log_f_BTH + m_before_BTH - m_BTH).clamp(max=0)
        weight_BHT1 = (i_BTH - m_BTH).exp().transpose(1, 2)[..., None]
        ones_BHT1 = torch.ones_like(weight_BHT1)
        h_BHTW, memory_BHKW = linear_attention(
            q_BHTK.to(dtype),
            k_BHTK.to(dtype) * weight_BHT1 / math.sqrt(self.key_size),
            torch.cat([v_BHTV.to(dtype), ones_BHT1], dim=-1),
            log_decay_BTH.transpose(1, 2),
            memory_BHKW,
        )
        sum_BHT1 = h_BHTW[..., -1:].abs().maximum((-m_BTH).exp().transpose(1, 2)[..., None])
        h_BHTV = (h_BHTW[..., :-1] / (sum_BHT1 + EPSILON)).to(x_BTD.dtype)
        after = Stabilised(memory_BHKW, maximum_after_BH)
        return self.joined(h_BHTV, x_BTD), self.streams.state_after(after, tokens)

    def operator_flops(self, length: int) -> int:
        """Return the operations of the recurrence's products for one token in a row of `length`."""
        return self.num_heads * chunk_flops(length, CHUNK, keys=self.key_size, values=self.value_size + 1, way="head")

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state in float32, whatever the length."""
        of_head = self.key_size * (self.value_size + 1) + 1
        return 4 * self.num_heads * of_head + self.streams.state_bytes()

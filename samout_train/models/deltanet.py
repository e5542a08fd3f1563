"""Mix by DeltaNet and Gated DeltaNet: in their memory, each token replaces the value that its key reads.

    S_t = a_t S_{t-1} + beta_t k_t (v_t - a_t S_{t-1}^T k_t)^T;   o_t = S_t^T q_t / sqrt(K)
    q, k, v = SiLU(convolution(W x)), q and k of norm 1;   beta = sigmoid(W_b x)
    log a = -exp(A) softplus(W_a x + b);   output = W_o (RMSNorm(o) * SiLU(W_g x))

DeltaNet is the case a = 1, without the output gate. With negative eigenvalues beta is 2 sigmoid(W_b x): a step can
reverse the sign of the value that a key reads, and so count modulo 2.

Source: Schlag et al., Linear Transformers Are Secretly Fast Weight Programmers (arXiv 2102.11174); Yang et al.,
Parallelizing Linear Transformers with the Delta Rule (arXiv 2406.06484) and Gated Delta Networks (arXiv 2412.06464),
section 3.4; Grazzi et al., Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues (arXiv 2411.12537). A
starts as log U(0, 16), b as the inverse softplus of exp U(log 0.001, log 0.1); as vectors, they have no weight decay.
Matrices start from N(0, 0.02^2), as in flash-linear-attention, and the convolution as torch draws it. With torch's
larger matrices, the mixer's first outputs hide the token, and the model starts to learn recall several hundred steps
later. Difference: keys and values have the width D each; in flash-linear-attention, Gated DeltaNet has keys of 0.75 D
and values of 1.5 D (`key_share`, `value_share`), and so a larger state at the same number of heads.
"""

# B batch, T time, D width, H heads, K width of a head's keys, V of its values

import math
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.config import Positive, SizeOrNone, validated
from samout_train.models.heads import Gate, HeadsJoined, OutputNorm, Streams, chunk_flops, head_size, in_heads
from samout_train.models.layers import STD, Linear
from samout_train.ops.delta_rule import CHUNK, delta_rule

LARGEST_RATE, SLOWEST, FASTEST = 16.0, 1e-3, 0.1  # initial bounds of exp(A) and of softplus(b)
EPSILON = 1e-6  # added to a squared norm


class DeltaNet(nn.Module):
    """Mix by the delta rule, with or without decay.

    Args:
        hidden_size: Width D.
        num_heads: Heads H.
        decay: Whether the memory decays: Gated DeltaNet.
        negative_eigenvalues: Whether beta is up to 2 instead of 1.
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
        decay: bool,
        negative_eigenvalues: bool,
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
        self.beta = Linear(hidden_size, num_heads, bias=False)
        self.largest_beta = 2.0 if negative_eigenvalues else 1.0
        self.decay: Linear | None = None
        if decay:
            self.decay = Linear(hidden_size, num_heads, bias=False)
            self.log_rate_H = nn.Parameter(torch.rand(num_heads).mul(LARGEST_RATE).log())
            self.decay_bias_H = nn.Parameter(drawn_step_bias(num_heads))
        self.joined = HeadsJoined(
            hidden_size=hidden_size,
            num_heads=num_heads,
            value_size=self.value_size,
            norm=output_norm,
            gate=output_gate,
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=STD)

    def forward(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Mix (B, T, D); the memory of the state is (B, H, K, V)."""
        memory_BHKV, tokens = self.streams.state_before(state)
        streams, tokens = self.streams(x_BTD, tokens)
        q_BHTK, k_BHTK, v_BHTV = (in_heads(stream, self.num_heads) for stream in streams)
        if self.streams.convolution is None:
            q_BHTK, k_BHTK, v_BHTV = F.silu(q_BHTK), F.silu(k_BHTK), F.silu(v_BHTV)
        beta_BHT = self.largest_beta * self.beta(x_BTD).sigmoid().transpose(1, 2)
        log_decay_BHT = None
        if self.decay is not None:
            steps_BTH = F.softplus(self.decay(x_BTD).to(self.log_rate_H.dtype) + self.decay_bias_H)
            log_decay_BHT = (-self.log_rate_H.exp() * steps_BTH).transpose(1, 2)
        o_BHTV, memory_BHKV = delta_rule(
            of_norm_1(q_BHTK) / math.sqrt(self.key_size),
            of_norm_1(k_BHTK),
            v_BHTV,
            beta_BHT,
            log_decay_BHT,
            memory_BHKV,
        )
        return self.joined(o_BHTV.to(x_BTD.dtype), x_BTD), self.streams.state_after(memory_BHKV, tokens)

    def operator_flops(self, length: int) -> int:
        """Return the operations of the recurrence's products for one token in a row of `length`."""
        return self.num_heads * chunk_flops(length, CHUNK, keys=self.key_size, values=self.value_size, way="delta")

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state in float32, whatever the length."""
        return 4 * self.num_heads * self.key_size * self.value_size + self.streams.state_bytes()


def of_norm_1(x_BHTK: Tensor) -> Tensor:
    """Return keys or queries of norm 1, at least in float32: in bfloat16 a norm has an error of up to 0.4 %."""
    wide_BHTK = x_BHTK.to(torch.promote_types(x_BHTK.dtype, torch.float32))
    return wide_BHTK * (wide_BHTK.square().sum(-1, keepdim=True) + EPSILON).rsqrt()


def drawn_step_bias(num_heads: int) -> Tensor:
    """Draw biases whose softplus is log-uniform between the slowest and the fastest step."""
    step_H = torch.exp(torch.rand(num_heads) * math.log(FASTEST / SLOWEST) + math.log(SLOWEST))
    return step_H + torch.log(-torch.expm1(-step_H))

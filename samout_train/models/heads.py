"""Build both ends of a mixer with heads: project streams from its input, and join its heads' outputs.

    streams = SiLU(convolution(W x)), each if a mixer has it;   output = W_o (norm(o) * gate(W_g x))

Ablations of Gated DeltaNet attribute most of the gain of modern mixers to the short convolution and the output gate
(arXiv 2412.06464, table 6). Every mixer can therefore have both, and a comparison reports which mixer has which.
"""

# B batch, T time, D width, H heads, K width of a head's keys, V of its values, P packed: the streams side by side

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.models.layers import CausalConvolution, Linear, RMSNorm
from samout_train.models.state import LayerState, as_layer_state

Gate = Literal["none", "silu", "sigmoid"]
OutputNorm = Literal["none", "head", "all"]


class Streams(nn.Module):
    """Project x to streams, and apply a short convolution and SiLU to the first of them.

    Args:
        hidden_size: Width D.
        widths: Widths of the streams.
        convolved: Number of streams, from the first, that are convolved.
        convolution_size: Tokens in the kernel of the convolution; 0 for neither convolution nor SiLU.
        bias: Whether the convolution has a bias.
        silu: Whether SiLU follows the convolution.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        widths: Sequence[int],
        convolved: int,
        convolution_size: int,
        bias: bool = False,
        silu: bool = True,
    ) -> None:
        super().__init__()
        self.widths, self.convolved_width = list(widths), sum(widths[:convolved])
        self.projection = Linear(hidden_size, sum(widths), bias=False, parts=widths)
        self.convolution: CausalConvolution | None = None
        if convolution_size and convolved:
            self.convolution = CausalConvolution(
                hidden_size=self.convolved_width, size=convolution_size, bias=bias, silu=silu
            )

    def forward(self, x_BTD: Tensor, tokens_BKP: Tensor | None) -> tuple[Sequence[Tensor], Tensor | None]:
        """Project, and convolve.

        Returns:
            The streams, (B, T, width) each, in the precision of the products; and the convolution's next state, None
            without a convolution.
        """
        packed_BTP = self.projection(x_BTD)
        if self.convolution is not None:
            rest = packed_BTP.shape[-1] - self.convolved_width
            convolved_BTP, rest_BTP = packed_BTP.split([self.convolved_width, rest], dim=-1)
            convolved_BTP, tokens_BKP = self.convolution(convolved_BTP, tokens_BKP)
            packed_BTP = torch.cat([convolved_BTP.to(rest_BTP.dtype), rest_BTP], dim=-1)
        return packed_BTP.split(self.widths, dim=-1), tokens_BKP

    def state_before(self, state: object) -> LayerState:
        """Split a mixer's state into its memory and the convolution's state."""
        if self.convolution is None:
            return LayerState(state, None)
        return as_layer_state(state)

    def state_after(self, memory: object, tokens_BKP: Tensor | None) -> object:
        """Return a mixer's state: its memory, wrapped in a `LayerState` if it has a convolution."""
        if self.convolution is None:
            return memory
        return LayerState(memory, tokens_BKP)

    def state_bytes(self) -> int:
        """Return the bytes of the convolution's state in float32."""
        if self.convolution is None:
            return 0
        return self.convolution.state_bytes()


class HeadsJoined(nn.Module):
    """Compute W_o (norm(o) * gate(W_g x)), without biases.

    Args:
        hidden_size: Width D.
        num_heads: Heads H.
        value_size: Width V of a head's output.
        norm: RMSNorm of each `head` separately, with weights that heads share, or of `all` together; or `none`.
        gate: Activation of W_g x: `silu` or `sigmoid`; `none` for no gate.
    """

    def __init__(self, *, hidden_size: int, num_heads: int, value_size: int, norm: OutputNorm, gate: Gate) -> None:
        super().__init__()
        self.norm: RMSNorm | None = None
        if norm == "head":
            self.norm = RMSNorm(value_size, eps=1e-5)
        elif norm == "all":
            self.norm = RMSNorm(num_heads * value_size, eps=1e-5)
        self.norm_is_of_all, self.gate_name = norm == "all", gate
        self.gate: Linear | None = None
        if gate != "none":
            self.gate = Linear(hidden_size, num_heads * value_size, bias=False)
        self.out = Linear(num_heads * value_size, hidden_size, bias=False)

    def forward(self, o_BHTV: Tensor, x_BTD: Tensor) -> Tensor:
        """Return (B, T, D)."""
        o_BTHV = o_BHTV.transpose(1, 2)
        if self.norm is not None and not self.norm_is_of_all:
            o_BTHV = self.norm(o_BTHV)
        o_BTP = o_BTHV.flatten(2)
        if self.norm is not None and self.norm_is_of_all:
            o_BTP = self.norm(o_BTP)
        if self.gate is not None:
            o_BTP = o_BTP * opened(self.gate(x_BTD), self.gate_name)
        joined_BTD: Tensor = self.out(o_BTP)
        return joined_BTD


class OutputGate(nn.Module):
    """Compute norm(u) * gate(W_g x) for a mixer that maps x to u and lacks a gate of its own.

    Args:
        hidden_size: Width D.
        num_heads: Heads H, for the norm `head`.
        norm: RMSNorm of each `head` separately, with weights that heads share, or of `all` together; or `none`.
        gate: Activation of W_g x: `silu` or `sigmoid`; `none` for no gate.
    """

    def __init__(self, *, hidden_size: int, num_heads: int, norm: OutputNorm, gate: Gate) -> None:
        super().__init__()
        self.num_heads, self.gate_name = num_heads, gate
        self.norm: RMSNorm | None = None
        if norm == "all":
            self.num_heads = 1
        if norm != "none":
            self.norm = RMSNorm(hidden_size // self.num_heads, eps=1e-5)
        self.gate: Linear | None = None
        if gate != "none":
            self.gate = Linear(hidden_size, hidden_size, bias=False)

    def forward(self, u_BTD: Tensor, x_BTD: Tensor) -> Tensor:
        """Return (B, T, D)."""
        if self.norm is not None:
            u_BTD = self.norm(u_BTD.unflatten(-1, (self.num_heads, -1))).flatten(-2)
        if self.gate is not None:
            u_BTD = u_BTD * opened(self.gate(x_BTD), self.gate_name)
        return u_BTD


def has_output_gate(mixer: nn.Module) -> bool:
    """Return whether a mixer has an output gate of its own, according to its attribute of this name."""
    return bool(getattr(mixer, "has_output_gate", False))


def output_gate_of(
    mixer: nn.Module, *, hidden_size: int, num_heads: int, norm: OutputNorm, gate: Gate
) -> OutputGate | None:
    """Return the output gate of a mixer; None if it has its own, or norm and gate are `none`."""
    if norm == gate == "none" or has_output_gate(mixer):
        return None
    return OutputGate(hidden_size=hidden_size, num_heads=num_heads, norm=norm, gate=gate)


def opened(x_BTP: Tensor, gate: Gate) -> Tensor:
    """Return the factor of a gate."""
    if gate == "sigmoid":
        return x_BTP.sigmoid()
    return F.silu(x_BTP)


def in_heads(x_BTP: Tensor, num_heads: int) -> Tensor:
    """Return a stream in the shape of the operators, (B, H, T, width of a head)."""
    return x_BTP.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def head_size(share: float, hidden_size: int, num_heads: int) -> int:
    """Return the width of one head if all heads together have a share of D; at least 1."""
    return max(1, int(share * hidden_size) // num_heads)


def draw_xavier(projections: Streams, gain: float) -> None:
    """Redraw the matrix of each stream: uniform, with variance 2 gain^2 / (inputs + outputs)."""
    for weight in projections.projection.weight.split(projections.widths):
        nn.init.xavier_uniform_(weight, gain=gain)


def chunk_flops(length: int, chunk: int, *, keys: int, values: int, way: Literal["head", "channel", "delta"]) -> int:
    """Return the operations of a chunked recurrence's products, for one head and token, in a row of `length`.

    A triangular system counts as the dense product of its shape.

    Args:
        length: Tokens of a row, which begins without a state.
        chunk: Tokens of a chunk.
        keys: K.
        values: V.
        way: Linear attention with one decay for a `head` or one for each `channel`, or the `delta` rule.
    """
    size = min(chunk, length)
    between = 2 * keys * values
    if way == "channel":
        size = min(chunk, 1 << (length - 1).bit_length())
        inside = max(0, size - 2) * (keys + values)  # halves of 2, 4 ... tokens; single tokens need no products
    else:
        inside = 2 * size * (keys + values)  # Q K^T, and its product with V
    chunks = -(-length // size)
    total = chunks * inside + chunks * between  # K^T V
    if chunks > 1:
        total += chunks * between  # Q S
    if way == "delta":
        total += chunks * 2 * size * (2 * keys + values)  # K K^T, and the triangular system
        total += (chunks - 1) * between  # W S
    return total * size // length

"""minGRU: a gated recurrence whose gates depend on the input only, so that training scans it in parallel.

z = sigmoid(Wz x); h~ = g(Wh x), g(v) = v + 0.5 for v >= 0, else sigmoid(v); h_t = (1 - z_t) h_{t-1} + z_t h~_t.

Source: Feng et al., Were RNNs All We Needed? (arXiv 2410.01201), appendix B. The recurrence has the width of the model,
and neither an expansion nor a convolution, which programs that follow the paper often have. `model=hybrid
model.pattern=[mingru] model.convolution_size=4` puts a convolution before it.

Departure from the paper: the scan in log space joins neighbouring spans of 1, 2, 4, ... tokens (Hillis and Steele
1986). The paper subtracts sums of log(1 - z) from the start of the sequence, which grow with it: over 64 tokens in
float32, the error of the gates' gradients was 9e-5, against 6e-7 with spans. Chunks of 64 tokens, each from the state
of the previous one, need fewer rounds.
"""

# B batch, T time, C time of a chunk, S time after the first span, D width, V vocabulary

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.config import Layers, Probability, Size, validated
from samout_train.models.interface import matrix_flops, part_of
from samout_train.models.layers import FeedForward, Linear, token_embedding
from samout_train.ops.elementwise import Stream, add_norm, residual

CHUNK = 64


class MinGRUMixer(nn.Module):
    """The recurrence over a sequence of width D = `hidden_size`.

    Args:
        hidden_size: Width D.
        num_heads: Accepted because all mixers take it; has no effect.
    """

    @validated
    def __init__(self, *, hidden_size: int, num_heads: int = 1) -> None:
        super().__init__()
        self.gate = Linear(hidden_size, hidden_size, bias=False)
        self.candidate = Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mix (B, T, D); the state (B, D) is the last h, in float32 or float64."""
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        gate_BTD, candidate_BTD = self.gate(x_BTD).to(dtype), self.candidate(x_BTD).to(dtype)
        if x_BTD.shape[1] == 1:
            h_BTD = gate_BTD.sigmoid() * positive(candidate_BTD)
            if state_BD is not None:
                h_BTD = h_BTD + (-gate_BTD).sigmoid() * state_BD[:, None]
        else:
            pieces = []
            for gate_BCD, candidate_BCD in zip(gate_BTD.split(CHUNK, 1), candidate_BTD.split(CHUNK, 1), strict=True):
                pieces.append(log_space_scan(gate_BCD, candidate_BCD, state_BD))
                state_BD = pieces[-1][:, -1]
            h_BTD = torch.cat(pieces, dim=1)
        return h_BTD.to(x_BTD.dtype), h_BTD[:, -1]

    def state_bytes(self, length: int) -> int:
        """Return the bytes of a state: one float32 per channel at any length."""
        return 4 * self.gate.in_features


def positive(x_BTD: Tensor) -> Tensor:
    """Return g(x): continuous, increasing and positive, so that a sum of its values has a logarithm."""
    return torch.where(x_BTD >= 0, x_BTD + 0.5, x_BTD.sigmoid())


def log_space_scan(gate_BTD: Tensor, candidate_BTD: Tensor, state_BD: Tensor | None) -> Tensor:
    """Return h (B, T, D) of all positions at once.

    Args:
        gate_BTD: Wz x, before the sigmoid.
        candidate_BTD: Wh x, before g.
        state_BD: h before the first position, positive; None for zero.
    """
    log_kept_BTD = -F.softplus(gate_BTD)  # log of the product of (1 - z) over the span that ends here
    log_candidate_BTD = torch.where(
        candidate_BTD >= 0, (F.relu(candidate_BTD) + 0.5).log(), -F.softplus(-candidate_BTD)
    )
    log_h_BTD = -F.softplus(-gate_BTD) + log_candidate_BTD  # log of h after that span, from zero before it
    if state_BD is not None:
        log_state_BD = state_BD.clamp(min=torch.finfo(state_BD.dtype).tiny).log()  # 0 has no gradient
        first_B1D = torch.logaddexp(log_h_BTD[:, :1], log_kept_BTD[:, :1] + log_state_BD[:, None])
        log_h_BTD = torch.cat([first_B1D, log_h_BTD[:, 1:]], dim=1)
    span, time = 1, gate_BTD.shape[1]
    while span < time:
        before_BSD = log_kept_BTD[:, span:] + log_h_BTD[:, :-span]
        log_h_BTD = torch.cat([log_h_BTD[:, :span], torch.logaddexp(log_h_BTD[:, span:], before_BSD)], dim=1)
        log_kept_BTD = torch.cat([log_kept_BTD[:, :span], log_kept_BTD[:, span:] + log_kept_BTD[:, :-span]], dim=1)
        span *= 2
    return log_h_BTD.exp()


class MinGRULayer(nn.Module):
    """x + mixer(norm(x)), then x + feed-forward(norm(x)).

    Args:
        hidden_size: Width D.
        ffn_size: Inner width of the feed-forward.
        dropout: Dropout inside the feed-forward.
    """

    def __init__(self, *, hidden_size: int, ffn_size: int, dropout: float) -> None:
        super().__init__()
        self.mixer_norm, self.feed_forward_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.mixer = MinGRUMixer(hidden_size=hidden_size)
        self.feed_forward = FeedForward(hidden_size=hidden_size, ffn_size=ffn_size, dropout=dropout, activation="relu")

    def forward(self, stream: Stream, state_BD: Tensor | None) -> tuple[Stream, Tensor]:
        """Return the layer's output (B, T, D), as `residual` does, and the mixer's next state."""
        x_BTD, y_BTD = add_norm(stream, self.mixer_norm)
        y_BTD, state_BD = self.mixer(y_BTD, state_BD)
        x_BTD, y_BTD = add_norm(residual(x_BTD, y_BTD), self.feed_forward_norm)
        return residual(x_BTD, self.feed_forward(y_BTD)), state_BD


class MinGRU(nn.Module):
    """A language model of minGRU layers.

    Args:
        vocab_size: Number of token ids V.
        pad_id: The id whose embedding starts at zero and takes no gradient; None for no padding.
        hidden_size: Width D.
        num_layers: Layers L.
        ffn_size: Inner width of the feed-forward; None for 4 D.
        dropout: Dropout inside the feed-forward.
    """

    @validated
    def __init__(
        self,
        *,
        vocab_size: Annotated[int, Size],
        pad_id: int | None,
        hidden_size: Annotated[int, Size],
        num_layers: Annotated[int, Layers],
        ffn_size: Annotated[int, Size] | None,
        dropout: Annotated[float, Probability],
    ) -> None:
        super().__init__()
        self.embedding = token_embedding("learned", vocab_size=vocab_size, size=hidden_size, pad_id=pad_id)
        self.layers = nn.ModuleList(
            MinGRULayer(hidden_size=hidden_size, ffn_size=ffn_size or 4 * hidden_size, dropout=dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.head = Linear(hidden_size, vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """Return the head's matrix (V, D)."""
        return self.head.weight

    def forward(
        self, ids_BT: Tensor, state: list[Tensor] | None = None, *, return_hidden: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the logits for each position.

        Args:
            ids_BT: Token ids, int64, T at least 1.
            state: State returned by the previous call; None at the start of a sequence.
            return_hidden: Whether to return the head's input (B, T, D) in place of the logits.

        Returns:
            (logits_BTV, state): The logits and one (B, D) state per layer.
        """
        states: Sequence[Tensor | None] = [None] * len(self.layers)
        if state is not None:
            states = state
        stream: Stream = self.embedding(ids_BT)
        next_state = []
        for layer, before_BD in zip(self.layers, states, strict=True):
            stream, after_BD = layer(stream, before_BD)
            next_state.append(after_BD)
        out_BTV = add_norm(stream, self.norm)[1]
        if not return_hidden:
            out_BTV = self.head(out_BTV)
        return out_BTV, next_state

    def part_of(self, name: str) -> str:
        """Return the part of the model that a parameter belongs to, as reports name it."""
        return part_of(name)

    def forward_flops_per_token(self, length: int) -> int:
        """Return the operations of the matrix products for one token, the same at any length."""
        return matrix_flops(self)

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state in float32, the same at any length."""
        return 4 * self.norm.normalized_shape[0] * len(self.layers)

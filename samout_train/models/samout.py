"""SamOut V1 and V8, the published models, in one file: mixers, feed-forward, layer, model.

    V1:         a, b, c = W x;     m_t = max over s <= t of (a_s + b_s) / sqrt(K);  u = (m + c) * m + b
    V8:         a, b, c, d = W x;  m_t = max over s <= t of d_s;                    u = ((a + b) * m + c) * m

    published:  u = mixer(x); y = LayerNorm(alpha * ffn(u) + (1 - alpha) * x); x = y + x
    pre:        x = x + mixer(norm(x)); x = x + ffn(norm(x))

The model is an embedding, layers and a head. The mixer is an argument and can be any implementation of the Mixer
protocol. There is no positional embedding: order enters only through the causal mixer and the optional convolution
before it.

Source: the published SamOut V1 and V8 programs; pre-norm: Xiong et al., On Layer Normalization in the Transformer
Architecture (arXiv 2002.04745). Departures from the published programs:

- Tensors are never permuted to heads, because everything but the scan is elementwise per channel. The heads only set
  the scale of V1's maximum and have no effect in V8.
- The state works; the published code passes it through and ignores it.
- All projections of a mixer share one matrix. A sum of projections, such as a + b, is one projection by the sum of
  their matrices, and V1's scale is applied to matrices too. Both change results by rounding only.
"""

# B batch, T time, D width, F inner width, H heads, K width per head (of a convolution: tokens back), V vocabulary,
# P packed: the streams or the projections side by side

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from samout_train.config import Layers, Probability, Range, Size, SizeOrNone, not_divisible, validated
from samout_train.models.heads import Gate, OutputGate, OutputNorm, output_gate_of
from samout_train.models.interface import Mixer, matrix_flops, part_of
from samout_train.models.layers import CausalConvolution, Linear, draw_small
from samout_train.models.regularisation import (
    Regularisation,
    StochasticDepth,
    connect_by_chance,
    drops,
    joined,
    rate_of_site,
)
from samout_train.models.state import LayerState, as_layer_state
from samout_train.ops.elementwise import Stream, add_norm
from samout_train.ops.linear import Stack, found_copy, linear, stacked_linear
from samout_train.ops.max_scan import max_mix
from samout_train.ops.samout_layer import Blended, blended, gated, gated_halves, step, takes_step

LayerNorms = Literal["published", "pre"]
State = Sequence[Tensor | LayerState]

FEW_TOKENS = 64  # below it, adding matrices costs more than a wider product


class MaxState(nn.Module):
    """V1's mixer: a, b, c = W x; m_t = max over s <= t of (a_s + b_s) / sqrt(K); u = (m + c) * m + b.

    Args:
        hidden_size: Width D.
        num_heads: Heads H: the maximum is scaled by 1 / sqrt(D / H).
    """

    state_is_maximum = True
    branches: ClassVar[Mapping[str, int]] = {"b": 0, "c": 1, "m": 2}  # b is the added term, not the one in the maximum

    def __init__(self, *, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.projection = Linear(hidden_size, 3 * hidden_size, bias=False, parts=[hidden_size] * 3)
        self.scale = 1 / math.sqrt(hidden_size / num_heads)

    def forward(self, x_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mix (B, T, D); the state (B, D) is the scaled maximum so far."""
        return self.mix(self.project(x_BTD), state_BD)

    def project(self, x_BTD: Tensor) -> Tensor:
        """Return the streams b, c and (a + b) / sqrt(K), the input of the maximum, side by side."""
        return project_streams(x_BTD, self.projection.weight_of_pass(), 3, self._streams)

    def mix(self, packed_BTP: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the mixed sequence and the next state, computed from the streams."""
        return max_mix(packed_BTP, state_BD, form="v1")

    def weight_stack(self) -> Stack:
        """Return the streams as blocks of one product."""
        blocks = [[(0, 1)], [(0, 2)], [(0, 0), (0, 1)]]
        return Stack([self.projection.weight], blocks, parts=3, scale=self.scale)

    def _streams(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        return b, c, (a + b) * self.scale

    def state_bytes(self, length: int) -> int:
        """Return the bytes of a state: one float32 per channel at any length."""
        return 4 * self.projection.in_features


class MaxStateSuper(nn.Module):
    """V8's mixer: a, b, c, d = W x, in this order; m_t = max over s <= t of d_s; u = ((a + b) * m + c) * m.

    Args:
        hidden_size: Width D.
        num_heads: Accepted as in the published program; has no effect.
    """

    state_is_maximum = True
    branches: ClassVar[Mapping[str, int]] = {"a+b": 0, "c": 1}  # without d there is no maximum, and no output

    def __init__(self, *, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.projection = Linear(hidden_size, 4 * hidden_size, bias=False, parts=[hidden_size] * 4)

    def forward(self, x_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mix (B, T, D); the state (B, D) is the maximum so far."""
        return self.mix(self.project(x_BTD), state_BD)

    def project(self, x_BTD: Tensor) -> Tensor:
        """Return the streams a + b, c and d, side by side."""
        return project_streams(x_BTD, self.projection.weight_of_pass(), 4, lambda a, b, c, d: (a + b, c, d))

    def mix(self, packed_BTP: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the mixed sequence and the next state, computed from the streams."""
        return max_mix(packed_BTP, state_BD, form="v8")

    def weight_stack(self) -> Stack:
        """Return the streams as blocks of one product."""
        return Stack([self.projection.weight], [[(0, 0), (0, 1)], [(0, 2)], [(0, 3)]], parts=4)

    def forward_flops_per_token(self) -> int:
        """Return the operations of the matrix product for one of many tokens: three streams."""
        return 2 * 3 * self.projection.in_features**2

    def state_bytes(self, length: int) -> int:
        """Return the bytes of a state: one float32 per channel at any length."""
        return 4 * self.projection.in_features


def project_streams(
    x_BTD: Tensor, weight_PD: Tensor, num_projections: int, streams_of: Callable[..., tuple[Tensor, ...]]
) -> Tensor:
    """Return the streams of x side by side.

    A sum of projections is one projection by the sum of their matrices. With fewer streams than projections the product
    is therefore smaller, and autograd still gives each matrix its own gradient.

    Args:
        x_BTD: The input.
        weight_PD: The matrices of all projections, stacked.
        num_projections: The number of these matrices.
        streams_of: A linear map from projections to streams, which is applied to their matrices.

    Returns:
        (B, T, P), where P is the number of streams times D.
    """
    if (copy := found_copy(x_BTD, weight_PD, blocks=3)) is not None:
        return stacked_linear(x_BTD, copy)
    batch, time, _ = x_BTD.shape
    if batch * time < FEW_TOKENS and not torch.is_grad_enabled():
        return torch.cat(streams_of(*linear(x_BTD, weight_PD).chunk(num_projections, dim=-1)), dim=-1)
    return linear(x_BTD, torch.cat(streams_of(*weight_PD.chunk(num_projections))))


class GatedFeedForward(nn.Module):
    """down(dropout(up(u) * relu(gate(u)))), all three with bias.

    Args:
        hidden_size: Width D of input and output.
        ffn_size: Inner width.
        dropout: Dropout before `down`.
    """

    def __init__(self, *, hidden_size: int, ffn_size: int, dropout: float) -> None:
        super().__init__()
        self.up = Linear(hidden_size, ffn_size)
        self.gate = Linear(hidden_size, ffn_size)
        self.down = Linear(ffn_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, u_BTD: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D), each position separately."""
        if (copy := found_copy(u_BTD, self.up.weight, blocks=2)) is not None:
            inner_BTF = gated_halves(stacked_linear(u_BTD, copy))
        else:
            inner_BTF = gated(self.up(u_BTD), self.gate(u_BTD))
        return cast(Tensor, self.down(self.dropout(inner_BTF)))

    def weight_stack(self) -> Stack:
        """Return `up` and `gate` as blocks of one product."""
        biases = [cast(Tensor, self.up.bias), cast(Tensor, self.gate.bias)]
        return Stack([self.up.weight, self.gate.weight], [[(0, 0)], [(1, 0)]], biases=biases)


class SamOutLayer(nn.Module):
    """One layer: mixer, feed-forward, and one (`published`) or two (`pre`) residual connections.

    Args:
        mixer: The token mixer.
        hidden_size: Width D.
        ffn_size: Inner width of the feed-forward.
        regularisation: The rates of this layer.
        norm: `published`: the feed-forward's output is blended with the input by the learnable scalar alpha, normalised
            and added to the input. `pre`: mixer and feed-forward each read the norm of their residual stream.
        convolution_size: Kernel width, in tokens, of a convolution before the mixer; 0 for none.
        output_gate: Norm and gate of the mixer's output; None for neither.
    """

    alpha: Tensor

    def __init__(
        self,
        *,
        mixer: nn.Module,
        hidden_size: int,
        ffn_size: int,
        regularisation: Regularisation,
        norm: LayerNorms = "published",
        convolution_size: int = 0,
        output_gate: OutputGate | None = None,
    ) -> None:
        super().__init__()
        self.mixer = mixer
        connect_by_chance(mixer, regularisation.drop_connect)
        self.output_gate = output_gate
        self.feed_forward = GatedFeedForward(
            hidden_size=hidden_size, ffn_size=ffn_size, dropout=regularisation.ffn_inner_dropout
        )
        self.mixer_dropout = nn.Dropout(regularisation.mixer_dropout)
        self.ffn_dropout = nn.Dropout(regularisation.ffn_dropout)
        self.stochastic_depth = StochasticDepth(regularisation.stochastic_depth)
        self.norm = nn.LayerNorm(hidden_size)
        self.feed_forward_norm: nn.LayerNorm | None = None
        self.convolution: CausalConvolution | None = None
        if norm == "published":
            self.alpha = nn.Parameter(torch.tensor(0.5))
        else:
            self.register_parameter("alpha", None)
            self.feed_forward_norm = nn.LayerNorm(hidden_size)
        if convolution_size:
            self.convolution = CausalConvolution(hidden_size=hidden_size, size=convolution_size, feeds_products=True)

    def forward(self, stream: Stream | Blended, state: Any) -> tuple[Stream | Blended, Any]:
        """Return the layer's output (B, T, D) and its next state: the mixer's, or a LayerState.

        `blended` makes the output of a published layer, and `residual` that of a pre-norm layer.
        """
        if self.feed_forward_norm is not None:
            x_BTD, y_BTD = add_norm(cast(Stream, stream), self.norm)
            u_BTD, state = self._mixed(y_BTD, state)
            x_BTD, y_BTD = add_norm(
                joined(x_BTD, u_BTD, self.mixer_dropout, self.stochastic_depth), self.feed_forward_norm
            )
            return joined(x_BTD, self.feed_forward(y_BTD), self.ffn_dropout, self.stochastic_depth), state
        x_BTD = read_BTD = cast(Tensor, stream)
        if isinstance(stream, Blended):
            x_BTD, read_BTD = stream
        if self._takes_step(x_BTD):
            return self._step(x_BTD, state)
        u_BTD, state = self._mixed(read_BTD, state)
        u_BTD, dropout = self.mixer_dropout(u_BTD), 0.0
        if self.training:
            dropout = self.ffn_dropout.p
        y = blended(self.feed_forward(u_BTD), x_BTD, self.alpha, self.norm, dropout)
        if self.training and self.stochastic_depth.p:  # the kernel already adds x: subtract it to get the branch
            y_BTD = y.x_BTD if isinstance(y, Blended) else y
            y = x_BTD + self.stochastic_depth(y_BTD - x_BTD)
        return y, state

    def _mixed(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        if self.convolution is None:
            u_BTD, state = self.mixer(x_BTD, state)
        else:
            mixer_state, tokens_BKD = as_layer_state(state)
            y_BTD, tokens_BKD = self.convolution(x_BTD, tokens_BKD)
            u_BTD, mixer_state = self.mixer(y_BTD, mixer_state)
            state = LayerState(mixer_state, tokens_BKD)
        if self.output_gate is not None:
            u_BTD = self.output_gate(u_BTD, x_BTD)
        return u_BTD, state

    @property
    def is_published(self) -> bool:
        """Return whether the layer has the form of the published programs."""
        return self.feed_forward_norm is None and self.convolution is None and self.output_gate is None

    def _takes_step(self, x_BTD: Tensor) -> bool:
        # Compare exact types: a class derived from these two may compute something else.
        if not (self.is_published and type(self.mixer) in (MaxState, MaxStateSuper) and takes_step(x_BTD)):
            return False
        return not (self.training and drops(self))

    def _step(self, x_BTD: Tensor, state_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        mixer, inner, x_BD = cast(MaxState | MaxStateSuper, self.mixer), self.feed_forward, x_BTD[:, 0]
        if state_BD is None:
            state_BD = torch.full_like(x_BD, -torch.inf)
        scale = None
        if isinstance(mixer, MaxState):
            scale = mixer.scale
        weights = (mixer.projection.weight, scale, inner.up, inner.gate, inner.down, self.norm, self.alpha)
        y_BD, state_BD = step(x_BD, state_BD.to(x_BD.dtype), *weights)
        return y_BD.unsqueeze(1), state_BD

    def forward_flops_per_token(self) -> int:
        """Return the operations of the matrix products; a mixer that adds matrices first reports its own."""
        reported = getattr(self.mixer, "forward_flops_per_token", None)
        of_mixer: int = matrix_flops(self.mixer) if reported is None else reported()
        if self.output_gate is not None:
            of_mixer += matrix_flops(self.output_gate)
        return of_mixer + matrix_flops(self.feed_forward)

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state in float32 after `length` tokens."""
        of_mixer = cast(Mixer, self.mixer).state_bytes(length)
        if self.convolution is None:
            return of_mixer
        return of_mixer + self.convolution.state_bytes()


class SamOut(nn.Module):
    """A causal language model over any mixer of the Mixer protocol.

    Args:
        vocab_size: Number of token ids V.
        pad_id: The id whose embedding starts at zero and takes no gradient through the lookup; None for no padding.
        hidden_size: Width D.
        num_heads: Heads H; must divide D. Passed to the mixer.
        num_layers: Layers L.
        ffn_size: Inner width of the feed-forward; None for `ffn_share` times D.
        ffn_share: Published inner width of the feed-forward as a share of D: V1 0.5, V8 1.
        dropout: Dropout of each feed-forward's output, unless `ffn_dropout` is given.
        tied_head: Whether the logits use the embedding matrix (then the padding row takes gradient through them).
        init: `published` is torch's defaults, with an embedding of N(0, 1); `small` draws the embedding with standard
            deviation 0.02, which trains better (tiny Shakespeare: V1 2.22 instead of 2.54 nats, V8 2.09 instead of
            2.16).
        mixer: Builds one layer's mixer from `hidden_size` and `num_heads`.
        norm: Places of norms and residual connections: `published`, or `pre`, with a final norm before the head.
        convolution_size: Kernel width, in tokens, of a causal convolution before each mixer; 0 for none.
        output_norm: Norm of a mixer's output, see samout_train.models.heads.OutputGate: `head`, `all` or `none`.
        output_gate: Gate of a mixer's output: `silu`, `sigmoid` or `none`.
        embedding_dropout: Dropout of the embedding; None for none.
        mixer_dropout: Dropout of each mixer's output; None for none.
        ffn_inner_dropout: Dropout inside each feed-forward; None for none.
        ffn_dropout: Dropout of each feed-forward's output; None for `dropout`.
        drop_connect: Share of the weights of each mixer's projections that are dropped in a pass.
        stochastic_depth: Share of the rows whose residual branch is dropped in the last layer.

    Raises:
        ValueError: if num_heads does not divide hidden_size, or pad_id is not below vocab_size.
    """

    @staticmethod
    def problems(settings: Mapping[str, Any], name: str) -> list[str]:
        """Return the problems between settings that are each valid alone; `name` is the key above them."""
        width, heads = settings["hidden_size"], settings["num_heads"]
        problem = not_divisible(f"{name}.hidden_size", width, f"{name}.num_heads", heads)
        if problem is None:
            return []
        return [problem]

    @validated
    def __init__(
        self,
        *,
        vocab_size: Annotated[int, Size],
        pad_id: int | None,
        hidden_size: Annotated[int, Size],
        num_heads: Annotated[int, Size],
        num_layers: Annotated[int, Layers],
        ffn_size: Annotated[int, Size] | None,
        ffn_share: Annotated[float, Range(0, 1024, low_included=False)],
        dropout: Annotated[float, Probability],
        tied_head: bool,
        init: Literal["published", "small"],
        mixer: Callable[..., nn.Module],
        norm: LayerNorms = "published",
        convolution_size: Annotated[int, SizeOrNone] = 0,
        output_norm: OutputNorm = "none",
        output_gate: Gate = "none",
        embedding_dropout: Annotated[float, Probability] | None = None,
        mixer_dropout: Annotated[float, Probability] | None = None,
        ffn_inner_dropout: Annotated[float, Probability] | None = None,
        ffn_dropout: Annotated[float, Probability] | None = None,
        drop_connect: Annotated[float, Probability] = 0.0,
        stochastic_depth: Annotated[float, Probability] = 0.0,
    ) -> None:
        super().__init__()
        if problem := not_divisible("hidden_size", hidden_size, "num_heads", num_heads):
            raise ValueError(problem)
        if pad_id is not None and not 0 <= pad_id < vocab_size:
            raise ValueError(f"pad_id ({pad_id}) must be from 0 to {vocab_size - 1}, below vocab_size")
        self.embedding = nn.Embedding(vocab_size, hidden_size, padding_idx=pad_id)
        self.embedding_dropout = nn.Dropout(rate_of_site(embedding_dropout))
        regularisation = Regularisation(
            mixer_dropout=rate_of_site(mixer_dropout),
            ffn_inner_dropout=rate_of_site(ffn_inner_dropout),
            ffn_dropout=rate_of_site(ffn_dropout, dropout),
            drop_connect=drop_connect,
            stochastic_depth=stochastic_depth,
        )
        self.layers = nn.ModuleList()
        for index in range(num_layers):
            built = mixer(hidden_size=hidden_size, num_heads=num_heads)
            layer = SamOutLayer(
                mixer=built,
                hidden_size=hidden_size,
                ffn_size=ffn_size or max(1, int(ffn_share * hidden_size)),
                regularisation=regularisation.of_layer(index, num_layers),
                norm=norm,
                convolution_size=convolution_size,
                output_gate=output_gate_of(
                    built, hidden_size=hidden_size, num_heads=num_heads, norm=output_norm, gate=output_gate
                ),
            )
            self.layers.append(layer)
        self.norm: nn.Module = nn.LayerNorm(hidden_size) if norm == "pre" else nn.Identity()
        self.head: Linear | None = None
        if not tied_head:
            self.head = Linear(hidden_size, vocab_size, bias=False)
        if init == "small":
            draw_small(self.embedding)

    @property
    def head_weight(self) -> Tensor:
        """Return the head's matrix (V, D)."""
        if self.head is None:
            return self.embedding.weight
        return self.head.weight

    def forward(
        self, ids_BT: Tensor, state: State | None = None, *, return_hidden: bool = False
    ) -> tuple[Tensor, State]:
        """Return the logits for the next token at each position.

        Args:
            ids_BT: Token ids, int64, T at least 1.
            state: State returned by the previous call; None at the start of a sequence.
            return_hidden: Whether to return the head's input (B, T, D) in place of the logits.

        Returns:
            (logits_BTV, state): The logits and each layer's state: (B, D), or a LayerState.

        Raises:
            ValueError: if the state has another number of layers or another batch.
        """
        states: Sequence[Any] = [None] * len(self.layers)
        if state is not None:
            states = state
        if len(states) != len(self.layers):
            raise ValueError(
                f"state has {len(states)} layers, the model {len(self.layers)}: pass the state that it returned"
            )
        stream: Stream | Blended = self.embedding_dropout(self.embedding(ids_BT))
        next_state = []
        for layer, before in zip(self.layers, states, strict=True):
            stream, after = layer(stream, before)
            next_state.append(after)
        if isinstance(stream, Blended):
            stream = stream.products_BTD  # no norm precedes the head
        x_BTD = add_norm(stream, self.norm)[1]
        if not return_hidden:
            x_BTD = linear(x_BTD, self.head_weight)
        return x_BTD, next_state

    def state_by_layer(self, state: State) -> dict[str, Tensor]:
        """Return each mixer's state by layer, for reports of its growth. A convolution's tokens are left out."""
        named = {}
        for index, part in enumerate(state, start=1):
            of_mixer: Any = part
            if isinstance(part, LayerState):
                of_mixer = part.mixer
            named[f"layer_{index}"] = of_mixer
        return named

    def part_of(self, name: str) -> str:
        """Return the part of the model that a parameter belongs to, as reports name it."""
        part = part_of(name)
        if part == "embedding" and self.head is None:
            return "embedding (also head)"
        has_alpha = isinstance(self.norm, nn.Identity)  # published layers have alpha, and no norm before the head
        if part == "norm" and has_alpha:
            return "norm and alpha"
        return part

    def forward_flops_per_token(self, length: int) -> int:
        """Return the operations of the matrix products for one token, the same at any length."""
        layers = sum(layer.forward_flops_per_token() for layer in cast(list[SamOutLayer], self.layers))
        return layers + 2 * self.head_weight.numel()

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state in float32 after `length` tokens."""
        return sum(layer.state_bytes(length) for layer in cast(list[SamOutLayer], self.layers))

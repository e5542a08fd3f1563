"""The skeleton that the SamOut variants share: an embedding, layers (samout_layer.py) and a head; the mixer is given.

There is no positional embedding: order enters only through the causal mixer, and the convolution where there is one.

Source: the published SamOut V1 and V8 programs. What differs here: tensors are never permuted to heads (everything but
the scan is elementwise per channel), and the state, which the published code threads through and ignores, is real.
"""

# B batch, T time, D width, V vocabulary

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from torch import Tensor, nn

from samout_train.config import Layers, Probability, Range, Size, SizeOrNone, not_divisible, validated
from samout_train.models.convolution import ConvolvedState, parts_of
from samout_train.models.embedding import draw_small
from samout_train.models.linear import Linear
from samout_train.models.parts import part_of
from samout_train.models.samout_layer import LayerNorms, SamOutLayer
from samout_train.ops.linear import linear

State = Sequence[Tensor | ConvolvedState]


class SamOut(nn.Module):
    """A causal language model over any mixer of the Mixer protocol.

    Args:
        vocab_size: Number of token ids V.
        pad_id: The id whose embedding starts at zero and takes no gradient through the lookup; None for no padding.
        hidden_size: Width D.
        num_heads: Heads H; must divide D. Handed to the mixer.
        num_layers: Layers L.
        ffn_size: Inner width of the feed-forward; None for `ffn_share` of D.
        ffn_share: Published inner width of the feed-forward as a share of D: V1 0.5, V8 1.
        dropout: Dropout of each feed-forward's output.
        tied_head: Whether the logits use the embedding matrix (then the padding row takes gradient through them).
        init: `published` is torch's defaults, with an embedding of N(0, 1); `small` draws the embedding with standard
            deviation 0.02, which trains better (tiny Shakespeare: V1 2.22 for 2.54 nats, V8 2.09 for 2.16).
        mixer: Builds one layer's mixer from `hidden_size` and `num_heads`.
        norm: Where norms and residual connections sit: `published`, or `pre`, with a last norm before the head.
        convolution_size: Tokens that a causal convolution before each mixer takes together; 0 for none.

    Raises:
        ValueError: if num_heads does not divide hidden_size, or pad_id is not below vocab_size.
    """

    @staticmethod
    def problems(settings: Mapping[str, Any], name: str) -> list[str]:
        """What is wrong between settings that are right by themselves; `name` is the key that they stand under."""
        width, heads = settings["hidden_size"], settings["num_heads"]
        problem = not_divisible(f"{name}.hidden_size", width, f"{name}.num_heads", heads)
        return [problem] if problem else []

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
    ) -> None:
        super().__init__()
        if problem := not_divisible("hidden_size", hidden_size, "num_heads", num_heads):
            raise ValueError(problem)
        if pad_id is not None and not 0 <= pad_id < vocab_size:
            raise ValueError(f"pad_id ({pad_id}) must be from 0 to {vocab_size - 1}, below vocab_size")
        self.embedding = nn.Embedding(vocab_size, hidden_size, padding_idx=pad_id)
        self.layers = nn.ModuleList(
            SamOutLayer(
                mixer=mixer(hidden_size=hidden_size, num_heads=num_heads),
                hidden_size=hidden_size,
                ffn_size=ffn_size or max(1, int(ffn_share * hidden_size)),
                dropout=dropout,
                norm=norm,
                convolution_size=convolution_size,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size) if norm == "pre" else nn.Identity()
        self.head = None if tied_head else Linear(hidden_size, vocab_size, bias=False)
        if init == "small":
            draw_small(self.embedding)

    @property
    def head_weight(self) -> Tensor:
        """The matrix (V, D) that makes logits of what `return_hidden` returns."""
        return self.embedding.weight if self.head is None else self.head.weight

    def forward(
        self, ids_BT: Tensor, state: State | None = None, *, return_hidden: bool = False
    ) -> tuple[Tensor, State]:
        """Logits for the next token at each position.

        Args:
            ids_BT: Token ids, int64, T at least 1.
            state: What the call before returned; None at the start of a sequence.
            return_hidden: Whether to return what the head reads, (B, T, D), in place of the logits.

        Returns:
            (logits_BTV, state): The logits and each layer's state: (B, D), or a ConvolvedState.

        Raises:
            ValueError: if the state has another number of layers or another batch.
        """
        if state is not None and len(state) != len(self.layers):
            raise ValueError(f"state has {len(state)} layers, the model {len(self.layers)}: give the state it returned")
        x_BTD = self.embedding(ids_BT)
        next_state = []
        for index, layer in enumerate(self.layers):
            x_BTD, layer_state = layer(x_BTD, None if state is None else state[index])
            next_state.append(layer_state)
        x_BTD = self.norm(x_BTD)
        return x_BTD if return_hidden else linear(x_BTD, self.head_weight), next_state

    def state_by_layer(self, state: State) -> dict[str, Tensor]:
        """Each mixer's state by layer: what may grow. A convolution's tokens are inputs as they were."""
        return {f"layer_{index}": parts_of(part)[0] for index, part in enumerate(state, start=1)}

    def part_of(self, name: str) -> str:
        """Which part of the model the parameter of this name belongs to, as reports show it."""
        part = part_of(name)
        if part == "embedding" and self.head is None:
            return "embedding (also head)"
        has_alpha = isinstance(self.norm, nn.Identity)  # published layers have one, and no norm before the head
        return "norm and alpha" if part == "norm" and has_alpha else part

    def forward_flops_per_token(self, length: int) -> int:
        """Operations of the matrix products for one token; no mixer here has one over time, whatever the length."""
        layers = sum(layer.forward_flops_per_token() for layer in cast(list[SamOutLayer], self.layers))
        return layers + 2 * self.head_weight.numel()

    def state_bytes(self, length: int) -> int:
        """Bytes of one sequence's state in float32 after `length` tokens."""
        return sum(layer.state_bytes(length) for layer in cast(list[SamOutLayer], self.layers))

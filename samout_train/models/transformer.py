"""The Transformer that every other system here is compared with.

Multi-head attention through torch's scaled_dot_product_attention, pre-norm or post-norm blocks, rotary or learned
positions, a key-value cache as its state. The key projection has no bias: softmax does not see it, so its gradient is
zero. A published listing projects keys and values with the query's matrix, a slip; each has its own here.

Source: Vaswani et al., Attention Is All You Need (arXiv 1706.03762); Su et al., RoFormer (arXiv 2104.09864).
"""

# B batch, T time, S time of keys, D width, H heads, K width per head, V vocabulary

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from torch import Tensor, nn

from samout_train.config import Layers, Positive, Probability, Size, SizeOrNone, not_divisible, validated
from samout_train.models.attention import Attention, Rotation, rotation_of
from samout_train.models.convolution import CausalConvolution, ConvolvedState, joined, parts_of
from samout_train.models.embedding import draw_small, token_embedding
from samout_train.models.feed_forward import FeedForward
from samout_train.models.key_value_cache import KeyValueCache, refuse_past_the_end
from samout_train.models.linear import Linear
from samout_train.models.parts import matrix_flops, part_of

State = list[KeyValueCache | ConvolvedState]


class Block(nn.Module):
    """Attention, then feed-forward, each in a residual connection with its norm before or after.

    Args:
        hidden_size: Width D.
        norm: `pre`: x + f(norm(x)); `post`: norm(x + f(x)).
        attention: The mixer.
        feed_forward: What follows it.
        convolution: What stands before the mixer; None for nothing.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        norm: Literal["pre", "post"],
        attention: Attention,
        feed_forward: FeedForward,
        convolution: CausalConvolution | None,
    ) -> None:
        super().__init__()
        self.convolution = convolution
        self.attention, self.feed_forward, self.norm = attention, feed_forward, norm
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)

    def forward(
        self,
        x_BTD: Tensor,
        state: Any,
        padding_mask_BS: Tensor | None,
        *,
        rotation: Rotation | None,
        capacity: int,
        return_attention: bool,
    ) -> tuple[Tensor, Any, Tensor | None]:
        """As Attention.forward; with a convolution, the state is a ConvolvedState around the cache."""
        pre, (cache, tokens_BKD) = self.norm == "pre", parts_of(state)
        inner_BTD = self.attention_norm(x_BTD) if pre else x_BTD
        if self.convolution is not None:
            if padding_mask_BS is not None:
                inner_BTD = inner_BTD.masked_fill(padding_mask_BS[:, -inner_BTD.shape[1] :, None], 0.0)
            inner_BTD, tokens_BKD = self.convolution(inner_BTD, tokens_BKD)
        y_BTD, cache, weights_BHTS = self.attention(
            inner_BTD,
            cache,
            padding_mask_BS,
            rotation=rotation,
            capacity=capacity,
            return_attention=return_attention,
        )
        x_BTD = x_BTD + y_BTD if pre else self.attention_norm(x_BTD + y_BTD)
        y_BTD = self.feed_forward(self.feed_forward_norm(x_BTD) if pre else x_BTD)
        x_BTD = x_BTD + y_BTD if pre else self.feed_forward_norm(x_BTD + y_BTD)
        return x_BTD, joined(cache, tokens_BKD), weights_BHTS


class Transformer(nn.Module):
    """A language model of attention blocks; with `causal=False` an encoder, for labelling.

    Args:
        vocab_size: Number of token ids V.
        pad_id: The id whose embedding starts at zero and takes no gradient; None for no padding.
        hidden_size: Width D.
        num_heads: Heads H; must divide D, and with rotary positions give each head an even width.
        num_layers: Blocks L.
        max_seq_len: Tokens that a state has room for, and positions that `learned` has.
        ffn_size: Inner width of the feed-forward; None for 4 D.
        dropout: Dropout of the attention weights and inside the feed-forward.
        norm: `pre`, with a last norm before the head, or `post`.
        positions: `rotary` (base 10,000) or `learned`.
        activation: `relu` or `gelu`, of the feed-forward.
        causal: False lets each position see the whole sequence.
        convolution_size: Tokens that a causal convolution before each attention takes together; 0 for none.

    Raises:
        ValueError: if num_heads does not divide hidden_size.
    """

    @staticmethod
    def problems(settings: Mapping[str, Any], name: str) -> list[str]:
        """What is wrong between settings that are right by themselves; `name` is the key that they stand under."""
        width, heads = settings["hidden_size"], settings["num_heads"]
        problem = not_divisible(f"{name}.hidden_size", width, f"{name}.num_heads", heads)
        if problem is None and settings["positions"] == "rotary" and (width // heads) % 2:
            problem = (
                f"{name}.positions=rotary: turns pairs, and a head is {width // heads} wide: set {name}.hidden_size to "
                f"{width + heads}, or {name}.positions=learned"
            )
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
        max_seq_len: Annotated[int, Positive],
        ffn_size: Annotated[int, Size] | None,
        dropout: Annotated[float, Probability],
        norm: Literal["pre", "post"],
        positions: Literal["rotary", "learned"],
        activation: Literal["relu", "gelu"],
        causal: bool,
        convolution_size: Annotated[int, SizeOrNone] = 0,
    ) -> None:
        super().__init__()
        settings = {"hidden_size": hidden_size, "num_heads": num_heads, "positions": positions}
        if found := self.problems(settings, "model"):
            raise ValueError(found[0])
        self.max_seq_len, self.head_width, self.sees_future = max_seq_len, hidden_size // num_heads, not causal
        self.embedding = token_embedding("learned", vocab_size=vocab_size, size=hidden_size, pad_id=pad_id)
        self.positions = nn.Embedding(max_seq_len, hidden_size) if positions == "learned" else None
        if self.positions is not None:
            draw_small(self.positions)
        self.layers = nn.ModuleList(
            Block(
                hidden_size=hidden_size,
                norm=norm,
                attention=Attention(
                    hidden_size=hidden_size,
                    num_heads=num_heads,
                    dropout=dropout,
                    causal=causal,
                ),
                feed_forward=FeedForward(
                    hidden_size=hidden_size,
                    ffn_size=ffn_size or 4 * hidden_size,
                    dropout=dropout,
                    activation=activation,
                ),
                convolution=(
                    CausalConvolution(hidden_size=hidden_size, size=convolution_size) if convolution_size else None
                ),
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size) if norm == "pre" else nn.Identity()
        self.head = Linear(hidden_size, vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """The matrix (V, D) that makes logits of what `return_hidden` returns."""
        return self.head.weight

    def forward(
        self,
        ids_BT: Tensor,
        state: State | None = None,
        *,
        padding_mask_BS: Tensor | None = None,
        return_attention: bool = False,
        return_hidden: bool = False,
    ) -> tuple[Tensor, State] | tuple[Tensor, State, list[Tensor]]:
        """Logits for each position.

        Args:
            ids_BT: Token ids, int64, T at least 1.
            state: What the call before returned; None at the start of a sequence.
            padding_mask_BS: True where a token, before or in `ids_BT`, is padding, which no other token attends to.
            return_attention: Whether to return the weights of each layer, (B, H, T, S), too.
            return_hidden: Whether to return what the head reads, (B, T, D), in place of the logits.

        Returns:
            (logits_BTV, state), and the weights where they are asked for.

        Raises:
            ValueError: past max_seq_len, or where an encoder is to go on from a state.
        """
        past, time = (parts_of(state[0])[0]["length"] if state else 0), ids_BT.shape[1]
        refuse_past_the_end(past, time, self.max_seq_len)
        if past and self.sees_future:
            raise ValueError("a model that sees the whole sequence (causal=false) cannot go on from a state")
        x_BTD = self.embedding(ids_BT)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions.weight[past : past + time]
        rotation = rotation_of(past, x_BTD, self.head_width) if self.positions is None else None
        next_state, weights = [], []
        for index, layer in enumerate(self.layers):
            x_BTD, layer_state, weights_BHTS = layer(
                x_BTD,
                None if state is None else state[index],
                padding_mask_BS,
                rotation=rotation,
                capacity=self.max_seq_len,
                return_attention=return_attention,
            )
            next_state.append(layer_state)
            weights.append(weights_BHTS)
        h_BTD = self.norm(x_BTD)
        out_BTV = h_BTD if return_hidden else self.head(h_BTD)
        return (out_BTV, next_state, weights) if return_attention else (out_BTV, next_state)

    def part_of(self, name: str) -> str:
        """Which part of the model the parameter of this name belongs to, as reports show it."""
        return part_of(name)

    def forward_flops_per_token(self, length: int) -> int:
        """Operations of the matrix products for one token in a sequence of `length`, which attention is linear in."""
        return matrix_flops(self) + 4 * self.head.in_features * length * len(self.layers)

    def state_bytes(self, length: int) -> int:
        """Bytes of one sequence's keys and values, and of a convolution's tokens, in float32 after `length` tokens.

        That is what counts of them: a state that goes on without gradients holds room for more.
        """
        blocks = cast(list[Block], self.layers)
        tokens = sum(block.convolution.state_bytes() for block in blocks if block.convolution is not None)
        return tokens + 2 * 4 * self.head.in_features * length * len(self.layers)

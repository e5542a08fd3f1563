"""The Transformer, the baseline of every comparison.

It has multi-head attention through torch's scaled_dot_product_attention, pre-norm or post-norm blocks, rotary or
learned positions, and a key-value cache as its state. The key projection has no bias: softmax cancels it, so its
gradient would be zero. Queries, keys and values have their own matrices; a published listing uses the query's matrix
for all three by mistake.

Source: Vaswani et al., Attention Is All You Need (arXiv 1706.03762), attention in section 3.2; rotary positions: Su et
al., RoFormer (arXiv 2104.09864), section 3.2.2. Departure: positions rotate the pair (k, k + K / 2) of a head instead
of (2k, 2k + 1), which is equivalent up to the order of channels.
"""

# B batch, T time, S time of keys, D width, H heads, K width per head, P pairs of a head: K / 2, V vocabulary

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.config import Layers, Positive, Probability, Size, SizeOrNone, not_divisible, validated
from samout_train.models.interface import matrix_flops, part_of
from samout_train.models.layers import (
    CausalConvolution,
    FeedForward,
    Linear,
    draw_small,
    token_embedding,
)
from samout_train.models.state import (
    KeyValueCache,
    LayerState,
    as_cache,
    as_layer_state,
    extended,
    length_of,
    padding_of,
    require_room,
)
from samout_train.ops.elementwise import Stream, add_norm, residual

ROTARY_BASE = 10_000.0
Rotation = tuple[Tensor, Tensor]
State = list[KeyValueCache | LayerState]


class Attention(nn.Module):
    """softmax(q k^T / sqrt(K)) v over H heads.

    Args:
        hidden_size: Width D.
        num_heads: Heads H; must divide D.
        dropout: Dropout of the attention weights.
        causal: Whether a position attends to itself and earlier ones only.
    """

    def __init__(self, *, hidden_size: int, num_heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.query = Linear(hidden_size, hidden_size)
        self.key = Linear(hidden_size, hidden_size, bias=False)
        self.value = Linear(hidden_size, hidden_size)
        self.out = Linear(hidden_size, hidden_size)
        self.num_heads, self.dropout, self.causal = num_heads, dropout, causal

    def forward(
        self,
        x_BTD: Tensor,
        cache: KeyValueCache | None,
        padding_mask_BS: Tensor | None,
        *,
        rotation: Rotation | None,
        capacity: int,
        return_attention: bool,
    ) -> tuple[Tensor, KeyValueCache, Tensor | None]:
        """Mix (B, T, D).

        Args:
            cache: Keys and values of earlier tokens.
            padding_mask_BS: True where a token, earlier or in the input, is padding; other tokens do not attend to it.
            rotation: Rotation of queries and keys, from `rotation_of`; None for none.
            capacity: Maximum number of tokens in the cache.
            return_attention: Whether to also return the weights (B, H, T, S), which requires an unfused path.

        Returns:
            (y_BTD, cache, weights_BHTS): The output, the next cache, and the weights or None.
        """
        batch, time, width = x_BTD.shape
        heads = (batch, time, self.num_heads, width // self.num_heads)
        q_BHTK = self.query(x_BTD).view(heads).transpose(1, 2)
        k_BHTK = self.key(x_BTD).view(heads).transpose(1, 2)
        v_BHTK = self.value(x_BTD).view(heads).transpose(1, 2)
        past = length_of(cache)
        if rotation is not None:
            q_BHTK, k_BHTK = _rotated(q_BHTK, rotation), _rotated(k_BHTK, rotation)
        cache = extended(cache, k_BHTK, v_BHTK, capacity)
        k_BHSK = cache.keys_BHSK[:, :, : cache.length]
        v_BHSK = cache.values_BHSK[:, :, : cache.length]
        seen_BHTS = _seen(time, past, padding_mask_BS, self.causal, x_BTD.device)
        dropout = 0.0
        if self.training:
            dropout = self.dropout
        weights_BHTS = None
        if return_attention:
            scores_BHTS = q_BHTK @ k_BHSK.transpose(2, 3) * heads[-1] ** -0.5
            if self.causal and seen_BHTS is None:
                seen_BHTS = causal_mask(time, past, x_BTD.device)
            if seen_BHTS is not None:
                scores_BHTS = scores_BHTS.masked_fill(~seen_BHTS, float("-inf"))
            weights_BHTS = scores_BHTS.softmax(-1)
            y_BHTK = F.dropout(weights_BHTS, dropout) @ v_BHSK
        else:
            from_start = self.causal and seen_BHTS is None and time > 1
            y_BHTK = F.scaled_dot_product_attention(
                q_BHTK, k_BHSK, v_BHSK, attn_mask=seen_BHTS, dropout_p=dropout, is_causal=from_start
            )
        return self.out(y_BHTK.transpose(1, 2).reshape(batch, time, width)), cache, weights_BHTS


def rotation_of(past: int, x_BTD: Tensor, head_width: int, missing_B: Tensor | None = None) -> Rotation:
    """Return cosine and sine of the rotary angles, position times base ** (-p / P), in at least float32.

    Args:
        past: The position of the first token.
        x_BTD: Sets T, the device and the dtype.
        head_width: K.
        missing_B: By how many tokens each sequence is shorter than `past`; None if none is.

    Returns:
        (T, P) each, or (B, 1, T, P) with `missing_B`.
    """
    half, dtype = head_width // 2, torch.promote_types(x_BTD.dtype, torch.float32)
    rate_P = ROTARY_BASE ** (-torch.arange(half, device=x_BTD.device, dtype=dtype) / half)
    position_T = torch.arange(past, past + x_BTD.shape[1], device=x_BTD.device, dtype=dtype)
    if missing_B is not None:
        position_T = position_T - missing_B[:, None, None]
    angle_TP = position_T[..., None] * rate_P
    return angle_TP.cos(), angle_TP.sin()


def _rotated(x_BHTK: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the pairs (k, k + K / 2) of each head."""
    cos_TP, sin_TP = rotation
    first_BHTP, second_BHTP = x_BHTK.to(cos_TP.dtype).chunk(2, dim=-1)
    turned = (first_BHTP * cos_TP - second_BHTP * sin_TP, first_BHTP * sin_TP + second_BHTP * cos_TP)
    return torch.cat(turned, dim=-1).to(x_BHTK.dtype)


def causal_mask(time: int, past: int, device: torch.device) -> Tensor:
    """Return (T, S), True where a position attends: to itself and earlier ones."""
    return torch.ones(time, past + time, dtype=torch.bool, device=device).tril(past)


def _seen(time: int, past: int, padding_mask_BS: Tensor | None, causal: bool, device: torch.device) -> Tensor | None:
    """Return (B, 1, T, S) or (T, S), True where a position attends; None if torch needs no mask."""
    if padding_mask_BS is None:
        if causal and past and time > 1:
            return causal_mask(time, past, device)
        return None
    itself_TS = torch.eye(past + time, dtype=torch.bool, device=device)[past:]
    seen_BTS = ~padding_mask_BS[:, None, :] | itself_TS  # a token that attends to nothing would be NaN
    if causal:
        seen_BTS = seen_BTS & causal_mask(time, past, device)
    return seen_BTS[:, None]


class Block(nn.Module):
    """Attention, then feed-forward, each in a residual connection with its norm before or after.

    Args:
        norm: `pre`: x + f(norm(x)); `post`: norm(x + f(x)).
        convolution: A convolution before the attention; None for none.
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
        stream: Stream,
        state: Any,
        padding_mask_BS: Tensor | None,
        *,
        rotation: Rotation | None,
        capacity: int,
        return_attention: bool,
    ) -> tuple[Stream, Any, Tensor | None]:
        """Return the results of Attention.forward; with a convolution, the state is a LayerState around the cache."""
        pre, tokens_BKD = self.norm == "pre", None
        if pre:
            x_BTD, inner_BTD = add_norm(stream, self.attention_norm)
        else:
            x_BTD = inner_BTD = cast(Tensor, stream)
        if self.convolution is not None:
            state, tokens_BKD = as_layer_state(state)
            if padding_mask_BS is not None:
                inner_BTD = inner_BTD.masked_fill(padding_mask_BS[:, -inner_BTD.shape[1] :, None], 0.0)
            inner_BTD, tokens_BKD = self.convolution(inner_BTD, tokens_BKD)
        y_BTD, cache, weights_BHTS = self.attention(
            inner_BTD,
            as_cache(state),
            padding_mask_BS,
            rotation=rotation,
            capacity=capacity,
            return_attention=return_attention,
        )
        if pre:
            x_BTD, y_BTD = add_norm(residual(x_BTD, y_BTD), self.feed_forward_norm)
            stream = residual(x_BTD, self.feed_forward(y_BTD))
        else:
            x_BTD = self.attention_norm(x_BTD + y_BTD)
            stream = self.feed_forward_norm(x_BTD + self.feed_forward(x_BTD))
        if self.convolution is None:
            return stream, cache, weights_BHTS
        return stream, LayerState(cache, tokens_BKD), weights_BHTS


class Transformer(nn.Module):
    """A language model of attention blocks. With `causal=False` it is an encoder, for labelling.

    Args:
        vocab_size: Number of token ids V.
        pad_id: The id whose embedding starts at zero and takes no gradient; None for no padding.
        hidden_size: Width D.
        num_heads: Heads H; must divide D, and D / H must be even for rotary positions.
        num_layers: Blocks L.
        max_seq_len: Maximum number of tokens in a sequence, over all calls, and the number of `learned` positions.
        ffn_size: Inner width of the feed-forward; None for 4 D.
        dropout: Dropout of the attention weights and inside the feed-forward.
        norm: `pre`, with a final norm before the head, or `post`.
        positions: `rotary` (base 10,000) or `learned`.
        activation: Activation of the feed-forward, `relu` or `gelu`.
        causal: False lets each position attend to the whole sequence.
        convolution_size: Kernel width, in tokens, of a causal convolution before each attention; 0 for none.

    Raises:
        ValueError: if num_heads does not divide hidden_size, or gives an odd width to heads with rotary positions.
    """

    @staticmethod
    def problems(settings: Mapping[str, Any], name: str) -> list[str]:
        """Return the problems between settings that are each valid alone; `name` is the key above them."""
        width, heads = settings["hidden_size"], settings["num_heads"]
        problem = not_divisible(f"{name}.hidden_size", width, f"{name}.num_heads", heads)
        if problem is None and settings["positions"] == "rotary" and (width // heads) % 2:
            problem = (
                f"{name}.positions=rotary: rotates pairs, and a head is {width // heads} wide: set {name}.hidden_size "
                f"to {width + heads}, or {name}.positions=learned"
            )
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
        self.positions: nn.Embedding | None = None
        if positions == "learned":
            self.positions = nn.Embedding(max_seq_len, hidden_size)
            draw_small(self.positions)
        self.layers = nn.ModuleList()
        for _ in range(num_layers):
            attention = Attention(hidden_size=hidden_size, num_heads=num_heads, dropout=dropout, causal=causal)
            feed_forward = FeedForward(
                hidden_size=hidden_size,
                ffn_size=ffn_size or 4 * hidden_size,
                dropout=dropout,
                activation=activation,
            )
            convolution = None
            if convolution_size:
                convolution = CausalConvolution(hidden_size=hidden_size, size=convolution_size, feeds_products=True)
            self.layers.append(
                Block(
                    hidden_size=hidden_size,
                    norm=norm,
                    attention=attention,
                    feed_forward=feed_forward,
                    convolution=convolution,
                )
            )
        self.norm: nn.Module = nn.Identity()
        if norm == "pre":
            self.norm = nn.LayerNorm(hidden_size)
        self.head = Linear(hidden_size, vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """Return the head's matrix (V, D)."""
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
        """Return the logits for each position.

        Args:
            ids_BT: Token ids, int64, T at least 1.
            state: State returned by the previous call; None at the start of a sequence.
            padding_mask_BS: True where a token, earlier or in `ids_BT`, is padding; other tokens do not attend to it.
            return_attention: Whether to also return the attention weights of each layer, (B, H, T, S).
            return_hidden: Whether to return the head's input (B, T, D) in place of the logits.

        Returns:
            (logits_BTV, state), or (logits_BTV, state, weights) with `return_attention`.

        Raises:
            ValueError: if the sequence exceeds max_seq_len, or an encoder gets a state.
        """
        states: Sequence[Any] = [None] * len(self.layers)
        if state:
            states = state
        first = states[0]
        if self.layers[0].convolution is not None:
            first = as_layer_state(first).mixer
        cache = as_cache(first)
        past, time = length_of(cache), ids_BT.shape[1]
        require_room(past, time, self.max_seq_len)
        if past and self.sees_future:
            raise ValueError("a model that sees the whole sequence (causal=false) cannot continue from a state")
        missing_B = None if cache is None else cache.missing_B
        padding_BS = padding_of(missing_B, past + time)
        if padding_BS is not None:
            if padding_mask_BS is not None:
                padding_BS = padding_BS | padding_mask_BS
            padding_mask_BS = padding_BS
        stream, rotation = self._embedded(ids_BT, past, missing_B)
        next_state, weights = [], []
        for layer, before in zip(self.layers, states, strict=True):
            stream, after, weights_BHTS = layer(
                stream,
                before,
                padding_mask_BS,
                rotation=rotation,
                capacity=self.max_seq_len,
                return_attention=return_attention,
            )
            next_state.append(after)
            weights.append(weights_BHTS)
        out_BTV = add_norm(stream, self.norm)[1]
        if not return_hidden:
            out_BTV = self.head(out_BTV)
        if return_attention:
            return out_BTV, next_state, weights
        return out_BTV, next_state

    def _embedded(self, ids_BT: Tensor, past: int, missing_B: Tensor | None) -> tuple[Stream, Rotation | None]:
        """Return the embedded tokens plus learned positions, or the tokens alone and the rotation for rotary ones."""
        x_BTD = self.embedding(ids_BT)
        if self.positions is None:
            return x_BTD, rotation_of(past, x_BTD, self.head_width, missing_B)
        end = past + ids_BT.shape[1]
        if missing_B is None:
            return x_BTD + self.positions.weight[past:end], None
        return x_BTD + self.positions(torch.arange(past, end, device=x_BTD.device) - missing_B[:, None]), None

    def part_of(self, name: str) -> str:
        """Return the part of the model that a parameter belongs to, as reports name it."""
        return part_of(name)

    def forward_flops_per_token(self, length: int) -> int:
        """Return the operations of the matrix products for one token of a sequence of `length`."""
        return matrix_flops(self) + 4 * self.head.in_features * length * len(self.layers)

    def state_bytes(self, length: int) -> int:
        """Return the bytes in float32 of one sequence's keys, values and convolution tokens after `length` tokens.

        A cache's spare room does not count.
        """
        blocks = cast(list[Block], self.layers)
        total = 2 * 4 * self.head.in_features * length * len(blocks)
        for block in blocks:
            if block.convolution is not None:
                total += block.convolution.state_bytes()
        return total

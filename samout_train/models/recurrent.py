"""RNN, LSTM and GRU as torch's fused modules over an embedding, and an LSTM with attention over its past.

The LSTM with attention attends from each hidden state to all hidden states so far:

    h = LSTM(x); c_t = sum over s <= t of softmax_s(h_t . h_s / sqrt(D)) h_s; logits = W [h_t ; c_t]

Source: Elman 1990; Hochreiter and Schmidhuber 1997; Cho et al. 2014 (arXiv 1406.1078), as torch.nn has them. The
attention: Luong et al., Effective Approaches to Attention-based Neural Machine Translation (arXiv 1508.04025), section
3.1, the score "dot"; over a language model's own past: Daniluk et al., Frustratingly Short Attention Spans (arXiv
1702.04521). Departures: scores are scaled by 1 / sqrt(D), a position attends to itself too, and the head reads the
concatenation of both vectors.
"""

# B batch, T time, S time of the keys, D width, L layers, V vocabulary

from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.config import Layers, Positive, Probability, Size, validated
from samout_train.models.interface import matrix_flops, part_of
from samout_train.models.layers import EmbeddingName, Linear, token_embedding
from samout_train.models.state import KeyValueCache, as_cache, extended, length_of, padding_of, require_room
from samout_train.models.transformer import causal_mask

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
# oneDNN has a bfloat16 LSTM only for CPUs with AVX-512. On others, torch fails instead of falling back.
HAS_BF16_LSTM = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class HiddenState(NamedTuple):
    """The state of an RNN or a GRU.

    Args:
        hidden_BLD: The hidden state of each layer and direction.
    """

    hidden_BLD: Tensor


class LSTMState(NamedTuple):
    """The state of an LSTM.

    Args:
        hidden_BLD: The hidden state of each layer and direction.
        cell_BLD: Their cell states.
    """

    hidden_BLD: Tensor
    cell_BLD: Tensor


class AttentionState(NamedTuple):
    """The state of an LSTM with attention.

    Args:
        hidden_BLD: The hidden state of each layer.
        cell_BLD: Their cell states.
        cache: All hidden states of the last layer so far, as keys.
    """

    hidden_BLD: Tensor
    cell_BLD: Tensor
    cache: KeyValueCache


torch.serialization.add_safe_globals([HiddenState, LSTMState, AttentionState])


class Recurrent(nn.Module):
    """A language model of one recurrent module. With `bidirectional=True` it is for labelling only.

    Args:
        vocab_size: Number of token ids V.
        pad_id: The id whose embedding starts at zero and takes no gradient; None for no padding.
        cell: `rnn` (tanh), `lstm` or `gru`.
        hidden_size: Width D.
        num_layers: Layers L.
        dropout: Dropout between layers.
        embedding: `learned`, or `one_hot`: the identity, not trained.
        embedding_size: Width of a learned embedding; None for D.
        bidirectional: Whether a second direction reads the sequence from its end.
        head: `linear`, without bias; or `none`: the hidden states are the logits, which requires D = V, or D = V / 2
            if bidirectional.

    Raises:
        ValueError: if there is no head and D does not fit V.
    """

    is_one_module = True  # torch's module hides its layers

    @validated
    def __init__(
        self,
        *,
        vocab_size: Annotated[int, Size],
        pad_id: int | None,
        cell: Literal["rnn", "lstm", "gru"],
        hidden_size: Annotated[int, Size],
        num_layers: Annotated[int, Layers],
        dropout: Annotated[float, Probability],
        embedding: EmbeddingName,
        embedding_size: Annotated[int, Size] | None,
        bidirectional: bool,
        head: Literal["linear", "none"],
    ) -> None:
        super().__init__()
        directions = 2 if bidirectional else 1
        if head == "none" and directions * hidden_size != vocab_size:
            width = ""
            if vocab_size % directions == 0:
                width = f"model.hidden_size to {vocab_size // directions}, or "
            raise ValueError(
                f"model.head=none makes the hidden state the logits, and its width {directions} x {hidden_size} does "
                f"not fit {vocab_size} ids: set {width}model.head=linear"
            )
        self.sees_future = bidirectional
        size = embedding_size or hidden_size
        self.embedding = token_embedding(embedding, vocab_size=vocab_size, size=size, pad_id=pad_id)
        self.mixer = CELLS[cell](
            self.embedding.embedding_dim,
            hidden_size,
            num_layers,
            batch_first=True,
            dropout=dropout_between(num_layers, dropout),
            bidirectional=bidirectional,
        )
        self.head: Linear | None = None
        if head == "linear":
            self.head = Linear(directions * hidden_size, vocab_size, bias=False)
        self.is_lstm, self.hidden_size, self.num_states = cell == "lstm", hidden_size, directions * num_layers

    @property
    def head_weight(self) -> Tensor | None:
        """Return the head's matrix (V, D), or (V, 2 D) if bidirectional; None without a head."""
        if self.head is None:
            return None
        return self.head.weight

    def forward(
        self, ids_BT: Tensor, state: HiddenState | LSTMState | None = None, *, return_hidden: bool = False
    ) -> tuple[Tensor, HiddenState | LSTMState]:
        """Return the logits for each position.

        Args:
            ids_BT: Token ids, int64, T at least 1.
            state: State returned by the previous call; None at the start of a sequence.
            return_hidden: Whether to return the head's input (B, T, D) in place of the logits; 2 D if bidirectional.

        Returns:
            (logits_BTV, state): The logits and a HiddenState; an LSTMState for an LSTM.

        Raises:
            ValueError: if a bidirectional model gets a state.
        """
        if state is not None and self.sees_future:
            raise ValueError("a model that sees the whole sequence (bidirectional=true) cannot continue from a state")
        x_BTD = self.embedding(ids_BT)
        given: Any = None
        if state is not None:
            given = _for_torch(*state)
            if not self.is_lstm:
                (given,) = given
        out_BTV, last = _run(self.mixer, x_BTD, given, is_lstm=self.is_lstm)
        if self.head is not None and not return_hidden:
            out_BTV = self.head(out_BTV)
        if self.is_lstm:
            hidden_LBD, cell_LBD = last
            return out_BTV, LSTMState(hidden_LBD.transpose(0, 1), cell_LBD.transpose(0, 1))
        return out_BTV, HiddenState(last.transpose(0, 1))

    def state_by_layer(self, state: HiddenState | LSTMState) -> dict[str, Tensor]:
        """Return the parts of a state, (B, D) each, by the name of their layer."""
        return _by_layer(*state)

    def part_of(self, name: str) -> str:
        """Return the part of the model that a parameter belongs to, as reports name it."""
        return part_of(name)

    def forward_flops_per_token(self, length: int) -> int:
        """Return the operations of the matrix products for one token, the same at any length."""
        return matrix_flops(self)

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state in float32, the same at any length."""
        hidden = 4 * self.num_states * self.hidden_size
        if self.is_lstm:
            return 2 * hidden
        return hidden


class LSTMAttention(nn.Module):
    """A language model with an LSTM and one attention over its hidden states.

    Args:
        vocab_size: Number of token ids V.
        pad_id: The id whose embedding starts at zero and takes no gradient; None for no padding.
        hidden_size: Width D.
        num_layers: Layers L of the LSTM.
        max_seq_len: Maximum number of tokens in a sequence, over all calls.
        dropout: Dropout between the LSTM's layers and of the attention weights.
    """

    is_one_module = True  # torch's module hides its layers

    @validated
    def __init__(
        self,
        *,
        vocab_size: Annotated[int, Size],
        pad_id: int | None,
        hidden_size: Annotated[int, Size],
        num_layers: Annotated[int, Layers],
        max_seq_len: Annotated[int, Positive],
        dropout: Annotated[float, Probability],
    ) -> None:
        super().__init__()
        self.max_seq_len, self.dropout = max_seq_len, dropout
        self.embedding = token_embedding("learned", vocab_size=vocab_size, size=hidden_size, pad_id=pad_id)
        between = dropout_between(num_layers, dropout)
        self.mixer = nn.LSTM(hidden_size, hidden_size, num_layers, batch_first=True, dropout=between)
        self.head = Linear(2 * hidden_size, vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """Return the head's matrix (V, 2 D)."""
        return self.head.weight

    def forward(
        self, ids_BT: Tensor, state: AttentionState | None = None, *, return_hidden: bool = False
    ) -> tuple[Tensor, AttentionState]:
        """Return the logits for each position.

        Args:
            ids_BT: Token ids, int64, T at least 1.
            state: State returned by the previous call; None at the start of a sequence.
            return_hidden: Whether to return the head's input (B, T, 2 D) in place of the logits.

        Returns:
            (logits_BTV, state): The logits and an AttentionState.

        Raises:
            ValueError: if the sequence exceeds max_seq_len.
        """
        before = given = None
        if state is not None:
            hidden_BLD, cell_BLD, cache = state
            before, given = as_cache(cache), _for_torch(hidden_BLD, cell_BLD)
        past, time = length_of(before), ids_BT.shape[1]
        require_room(past, time, self.max_seq_len)
        h_BTD, (last_LBD, cell_LBD) = _run(self.mixer, self.embedding(ids_BT), given, is_lstm=True)
        keys_B1TD = h_BTD[:, None]
        # The keys are the values, so the cache's values stay empty.
        cache = extended(before, keys_B1TD, keys_B1TD[..., :0], self.max_seq_len)
        seen_B1SD = cache.keys_BHSK[:, :, : cache.length]
        mask, dropout = None, 0.0
        if past and time > 1:
            mask = causal_mask(time, past, h_BTD.device)
        padding_BS = padding_of(cache.missing_B, past + time)
        if padding_BS is not None:
            mask = causal_mask(time, past, h_BTD.device) & ~padding_BS[:, None, None]
        if self.training:
            dropout = self.dropout
        c_B1TD = F.scaled_dot_product_attention(
            keys_B1TD,
            seen_B1SD,
            seen_B1SD,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=past == 0 and time > 1,
        )
        out_BTV = torch.cat([h_BTD, c_B1TD[:, 0]], dim=-1)
        if not return_hidden:
            out_BTV = self.head(out_BTV)
        return out_BTV, AttentionState(last_LBD.transpose(0, 1), cell_LBD.transpose(0, 1), cache)

    def state_by_layer(self, state: AttentionState) -> dict[str, Tensor | KeyValueCache]:
        """Return the LSTM's parts of a state, (B, D) each, by the name of their layer, and the cache of attention."""
        return {**_by_layer(state.hidden_BLD, state.cell_BLD), "attention": state.cache}

    def part_of(self, name: str) -> str:
        """Return the part of the model that a parameter belongs to, as reports name it."""
        return part_of(name)

    def forward_flops_per_token(self, length: int) -> int:
        """Return the operations of the matrix products for one token of a sequence of `length`."""
        return matrix_flops(self) + 4 * self.mixer.hidden_size * length

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state in float32 after `length` tokens, without the cache's spare room."""
        return 4 * self.mixer.hidden_size * (2 * self.mixer.num_layers + length)


def _by_layer(*parts: Tensor) -> dict[str, Tensor]:
    """Return hidden and cell state, (B, L, D), as (B, D) each by the name of their layer."""
    named = {}
    for part_BLD, ending in zip(parts, ("", "_cell"), strict=False):
        for index, part_BD in enumerate(part_BLD.unbind(1), start=1):
            named[f"layer_{index}{ending}"] = part_BD
    return named


def dropout_between(num_layers: int, dropout: float) -> float:
    """Return the dropout for torch's recurrent modules, which warn about dropout with a single layer."""
    if num_layers > 1:
        return dropout
    return 0.0


def _for_torch(*parts: Tensor) -> tuple[Tensor, ...]:
    """Return (B, L, D) tensors in the layout of torch's modules, (L, B, D)."""
    return tuple(part_BLD.transpose(0, 1).contiguous() for part_BLD in parts)


def _run(mixer: nn.Module, x_BTD: Tensor, given: Any, *, is_lstm: bool) -> Any:
    """Run a recurrent network of torch; an LSTM runs in float32 if the CPU has none in autocast's precision."""
    if is_lstm and x_BTD.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        has_one = HAS_BF16_LSTM and torch.get_autocast_dtype("cpu") == torch.bfloat16
        with torch.autocast("cpu", enabled=has_one):
            return mixer(x_BTD if has_one else x_BTD.float(), given)
    return mixer(x_BTD, given)

"""RNN, LSTM and GRU: torch's fused modules over an embedding; and an LSTM that looks back.

The last one attends from each hidden state to all hidden states so far:

    h = LSTM(x); c_t = sum over s <= t of softmax_s(h_t . h_s / sqrt(D)) h_s; logits = W [h_t ; c_t]

Source: Elman 1990; Hochreiter and Schmidhuber 1997; Cho et al. 2014 (arXiv 1406.1078), as torch.nn has them. The
attention: Luong et al., Effective Approaches to Attention-based Neural Machine Translation (arXiv 1508.04025), section
3.1, the score "dot"; over a language model's own past: Daniluk et al., Frustratingly Short Attention Spans (arXiv
1702.04521). What differs here: scores are scaled by 1 / sqrt(D), a position sees itself too, and the head takes both
vectors as they are.
"""

# B batch, T time, S time of what is looked at, D width, L layers, V vocabulary

from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.config import Layers, Positive, Probability, Size, validated
from samout_train.models.interface import matrix_flops, part_of
from samout_train.models.layers import EmbeddingName, Linear, token_embedding
from samout_train.models.state import KeyValueCache, extended, refuse_past_the_end
from samout_train.models.transformer import causal_mask

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
AttentionState = tuple[Tensor, Tensor, KeyValueCache]


class Recurrent(nn.Module):
    """A language model of one recurrent module; with `bidirectional=True` for labelling only.

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
        head: `linear`, without bias, or `none`: the hidden state itself is the logits, so D must be V, and in two
            directions, which lie one behind the other, V / 2.

    Raises:
        ValueError: if there is no head and D is not that.
    """

    is_one_module = True  # of torch's, whose layers cannot be taken one by one

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
            width = "" if vocab_size % directions else f"model.hidden_size to {vocab_size // directions}, or "
            raise ValueError(
                f"model.head=none makes the hidden state the logits, and {directions} x {hidden_size} wide it does not "
                f"fit {vocab_size} ids: set {width}model.head=linear"
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
        self.head = Linear(directions * hidden_size, vocab_size, bias=False) if head == "linear" else None
        self.is_lstm, self.hidden_size, self.num_states = cell == "lstm", hidden_size, directions * num_layers

    @property
    def head_weight(self) -> Tensor | None:
        """Return the matrix (V, D) that makes logits of what `return_hidden` returns; None without a head."""
        return None if self.head is None else self.head.weight

    def forward(
        self, ids_BT: Tensor, state: tuple[Tensor, ...] | None = None, *, return_hidden: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the logits for each position.

        Args:
            ids_BT: Token ids, int64, T at least 1.
            state: What the call before returned; None at the start of a sequence.
            return_hidden: Whether to return what the head reads, (B, T, D), in place of the logits.

        Returns:
            (logits_BTV, state): The logits and the hidden state, (B, L, D); for an LSTM its cell state, too.

        Raises:
            ValueError: if a bidirectional model is to go on from a state.
        """
        if state is not None and self.sees_future:
            raise ValueError("a model that sees the whole sequence (bidirectional=true) cannot go on from a state")
        x_BTD = self.embedding(ids_BT)
        given: Any = None
        if state is not None:
            parts = tuple(part_BLD.transpose(0, 1).contiguous() for part_BLD in state)
            given = parts if self.is_lstm else parts[0]
        h_BTD, last = self.mixer(x_BTD, given)
        parts = last if self.is_lstm else (last,)
        out_BTV = h_BTD if return_hidden or self.head is None else self.head(h_BTD)
        return out_BTV, tuple(part_LBD.transpose(0, 1) for part_LBD in parts)

    def state_by_layer(self, state: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Return the parts of a state, (B, D) each, by a name that says which layer's they are."""
        hidden_BLD, *cells = state
        named = {f"layer_{index}": part_BD for index, part_BD in enumerate(hidden_BLD.unbind(1), start=1)}
        for cell_BLD in cells:
            named |= {f"layer_{index}_cell": part_BD for index, part_BD in enumerate(cell_BLD.unbind(1), start=1)}
        return named

    def part_of(self, name: str) -> str:
        """Return which part of the model the parameter of this name belongs to, as reports show it."""
        return part_of(name)

    def forward_flops_per_token(self, length: int) -> int:
        """Return the operations of the matrix products for one token, whatever the length."""
        return matrix_flops(self)

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state in float32, whatever the length."""
        return 4 * self.num_states * self.hidden_size * (2 if self.is_lstm else 1)


class LSTMAttention(nn.Module):
    """A language model of an LSTM and one attention over its hidden states.

    Args:
        vocab_size: Number of token ids V.
        pad_id: The id whose embedding starts at zero and takes no gradient; None for no padding.
        hidden_size: Width D.
        num_layers: Layers L of the LSTM.
        max_seq_len: Tokens that a state has room for.
        dropout: Dropout between the LSTM's layers and of the attention weights.
    """

    is_one_module = True  # of torch's, whose layers cannot be taken one by one

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
        """Return the matrix (V, 2 D) that makes logits of what `return_hidden` returns."""
        return self.head.weight

    def forward(
        self, ids_BT: Tensor, state: AttentionState | None = None, *, return_hidden: bool = False
    ) -> tuple[Tensor, AttentionState]:
        """Return the logits for each position.

        Args:
            ids_BT: Token ids, int64, T at least 1.
            state: What the call before returned; None at the start of a sequence.
            return_hidden: Whether to return what the head reads, (B, T, 2 D), in place of the logits.

        Returns:
            (logits_BTV, state): The logits, and the LSTM's two states, (B, L, D), with all hidden states so far.

        Raises:
            ValueError: past max_seq_len.
        """
        past, time = (state[2]["length"] if state else 0), ids_BT.shape[1]
        refuse_past_the_end(past, time, self.max_seq_len)
        given = None if state is None else tuple(part_BLD.transpose(0, 1).contiguous() for part_BLD in state[:2])
        h_BTD, (last_LBD, cell_LBD) = self.mixer(self.embedding(ids_BT), given)
        keys_B1TD = h_BTD[:, None]
        # Keys are values here, so what a cache keeps as values is empty.
        cache = extended(state[2] if state else None, keys_B1TD, keys_B1TD[..., :0], self.max_seq_len)
        seen_B1SD = cache["keys_BHSK"][:, :, : past + time]
        mask_TS = causal_mask(time, past, h_BTD.device) if past and time > 1 else None
        c_B1TD = F.scaled_dot_product_attention(
            keys_B1TD,
            seen_B1SD,
            seen_B1SD,
            attn_mask=mask_TS,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=past == 0 and time > 1,
        )
        both_BTP = torch.cat([h_BTD, c_B1TD[:, 0]], dim=-1)
        out_BTV = both_BTP if return_hidden else self.head(both_BTP)
        return out_BTV, (last_LBD.transpose(0, 1), cell_LBD.transpose(0, 1), cache)

    def part_of(self, name: str) -> str:
        """Return which part of the model the parameter of this name belongs to, as reports show it."""
        return part_of(name)

    def forward_flops_per_token(self, length: int) -> int:
        """Return the operations of the products for one token in a sequence of `length`: attention is linear in it."""
        return matrix_flops(self) + 4 * self.mixer.hidden_size * length

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state in float32 after `length` tokens.

        That is what counts of it: a state that goes on without gradients holds room for more.
        """
        return 4 * self.mixer.hidden_size * (2 * self.mixer.num_layers + length)


def dropout_between(num_layers: int, dropout: float) -> float:
    """Return the dropout to give torch's recurrent modules, which warn of one that is between no two layers."""
    return dropout if num_layers > 1 else 0.0

"""An LSTM that looks back: attention of each hidden state over all hidden states so far.

h = LSTM(x); c_t = sum over s <= t of softmax_s(h_t . h_s / sqrt(D)) h_s; logits = W [h_t ; c_t].

Source: Luong et al., Effective Approaches to Attention-based Neural Machine Translation (arXiv 1508.04025), section
3.1, the score "dot"; over a language model's own past: Daniluk et al., Frustratingly Short Attention Spans (arXiv
1702.04521). What differs here: scores are scaled by 1 / sqrt(D), a position sees itself too, and the head takes both
vectors as they are.
"""

# B batch, T time, S time of what is looked at, D width, L layers, V vocabulary

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.config import Layers, Positive, Probability, Size, validated
from samout_train.models.attention import causal_mask
from samout_train.models.embedding import token_embedding
from samout_train.models.key_value_cache import KeyValueCache, extended, refuse_past_the_end
from samout_train.models.linear import Linear
from samout_train.models.parts import matrix_flops, part_of
from samout_train.models.recurrent import dropout_between

State = tuple[Tensor, Tensor, KeyValueCache]


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
        """The matrix (V, 2 D) that makes logits of what `return_hidden` returns."""
        return self.head.weight

    def forward(
        self, ids_BT: Tensor, state: State | None = None, *, return_hidden: bool = False
    ) -> tuple[Tensor, State]:
        """Logits for each position.

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
        """Which part of the model the parameter of this name belongs to, as reports show it."""
        return part_of(name)

    def forward_flops_per_token(self, length: int) -> int:
        """Operations of the matrix products for one token in a sequence of `length`, which attention is linear in."""
        return matrix_flops(self) + 4 * self.mixer.hidden_size * length

    def state_bytes(self, length: int) -> int:
        """Bytes of one sequence's state in float32 after `length` tokens.

        That is what counts of it: a state that goes on without gradients holds room for more.
        """
        return 4 * self.mixer.hidden_size * (2 * self.mixer.num_layers + length)

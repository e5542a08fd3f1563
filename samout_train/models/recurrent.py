"""RNN, LSTM and GRU: torch's fused modules over an embedding.

Source: Elman 1990; Hochreiter and Schmidhuber 1997; Cho et al. 2014 (arXiv 1406.1078), as torch.nn has them.
"""

# B batch, T time, D width, L layers, V vocabulary

from typing import Annotated, Any, Literal

from torch import Tensor, nn

from samout_train.config import Layers, Probability, Size, validated
from samout_train.models.embedding import EmbeddingName, token_embedding
from samout_train.models.linear import Linear
from samout_train.models.parts import matrix_flops, part_of

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


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
        """The matrix (V, D) that makes logits of what `return_hidden` returns; None without a head."""
        return None if self.head is None else self.head.weight

    def forward(
        self, ids_BT: Tensor, state: tuple[Tensor, ...] | None = None, *, return_hidden: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits for each position.

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
        """The parts of a state, (B, D) each, by a name that says which layer's they are."""
        hidden_BLD, *cells = state
        named = {f"layer_{index}": part_BD for index, part_BD in enumerate(hidden_BLD.unbind(1), start=1)}
        for cell_BLD in cells:
            named |= {f"layer_{index}_cell": part_BD for index, part_BD in enumerate(cell_BLD.unbind(1), start=1)}
        return named

    def part_of(self, name: str) -> str:
        """Which part of the model the parameter of this name belongs to, as reports show it."""
        return part_of(name)

    def forward_flops_per_token(self, length: int) -> int:
        """Operations of the matrix products for one token, whatever the length."""
        return matrix_flops(self)

    def state_bytes(self, length: int) -> int:
        """Bytes of one sequence's state in float32, whatever the length."""
        return 4 * self.num_states * self.hidden_size * (2 if self.is_lstm else 1)


def dropout_between(num_layers: int, dropout: float) -> float:
    """The dropout to give torch's recurrent modules, which warn of it where there are no two layers to be between."""
    return dropout if num_layers > 1 else 0.0

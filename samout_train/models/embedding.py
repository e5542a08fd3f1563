"""Token ids to vectors: learned, or the identity."""

# B batch, T time, V vocabulary

from typing import Literal, cast

import torch
from torch import Tensor, nn

EmbeddingName = Literal["learned", "one_hot"]
STD = 0.02


class OneHot(nn.Module):
    """The identity: id n becomes the n-th unit vector; nothing to train.

    Args:
        vocab_size: Number of ids V, and the width of the vectors.
    """

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.embedding_dim = vocab_size
        # A buffer follows the model's dtype and device; it is no weight, so no checkpoint holds it.
        self.register_buffer("identity_VV", torch.eye(vocab_size), persistent=False)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """(B, T) to (B, T, V)."""
        return cast(Tensor, self.identity_VV)[ids_BT]


def token_embedding(name: EmbeddingName, *, vocab_size: int, size: int, pad_id: int | None) -> nn.Embedding | OneHot:
    """Builds an embedding; it has its width as `embedding_dim`.

    Args:
        name: `learned`: normal of standard deviation 0.02, the padding's row zero and kept there. `one_hot`.
        vocab_size: Number of ids V.
        size: Width of a learned one; `one_hot` is V wide.
        pad_id: Id of the padding; None where there is none.
    """
    if name == "one_hot":
        return OneHot(vocab_size)
    embedding = nn.Embedding(vocab_size, size, padding_idx=pad_id)
    draw_small(embedding)
    return embedding


def draw_small(embedding: nn.Embedding) -> None:
    """Draws the weights anew, normal of standard deviation 0.02; the padding's row is zero."""
    nn.init.normal_(embedding.weight, std=STD)
    if embedding.padding_idx is not None:
        nn.init.zeros_(embedding.weight[embedding.padding_idx])

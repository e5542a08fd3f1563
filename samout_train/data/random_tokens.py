"""Uniform random token ids, as in the published training program. A model can only memorise them."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from samout_train.config import Positive, Problem, Share, Size, checked_by, validated
from samout_train.data.source import MatrixRows, Source


def random_tokens_problems(settings: Mapping[str, Any], name: str) -> list[Problem]:
    """Return the problems of the padding id and ignore_index."""
    found, pad_id, vocab_size = [], settings["pad_id"], settings["vocab_size"]
    if not 0 <= pad_id < vocab_size or vocab_size < 2:
        text = f"must be an id, from 0 to {vocab_size - 1}"
        fix = f"set {name}.vocab_size to {max(2, pad_id + 1)} or more, or another pad_id"
        found.append(Problem(f"{name}.pad_id", str(pad_id), text=text, fix=fix, kind="value"))
    if settings["ignore_index"] != pad_id:
        text = f"must be {name}.pad_id ({pad_id}), or padding is learned"
        found.append(Problem(f"{name}.ignore_index", str(settings["ignore_index"]), text=text, kind="value"))
    return found


@checked_by(random_tokens_problems)
@validated
def random_tokens(
    *,
    vocab_size: Annotated[int, Size],
    seq_len: Annotated[int, Positive],
    num_sequences: Annotated[int, Positive],
    pad_probability: Annotated[float, Share],
    pad_id: int,
    ignore_index: int,
    seed: int,
) -> Source:
    """Return random sequences for training, and as many others for validation.

    Args:
        vocab_size: Number of ids V, at least 2; one of them is the padding.
        seq_len: Targets in a row; a row has seq_len + 1 ids.
        num_sequences: Rows in each split.
        pad_probability: Probability that one random position of a sequence is set to `pad_id`.
        pad_id: Id of the padding.
        ignore_index: Targets of this value are not counted.
        seed: Seed of all sequences.

    Returns:
        A source whose floor is ln(V - 1) if one id is ignored: the counted targets are uniform over the others.

    Raises:
        ValueError: if pad_id is out of range.

    Source: the published SamOut training program.
    """
    if not 0 <= pad_id < vocab_size or vocab_size < 2:
        raise ValueError(
            f"pad_id ({pad_id}) must be from 0 to {vocab_size - 1}, and vocab_size ({vocab_size}) 2 or more"
        )
    generator = torch.Generator().manual_seed(seed)

    def sequences() -> Tensor:
        ids_RT = torch.randint(vocab_size, (num_sequences, seq_len + 1), generator=generator)
        padded_R = torch.rand(num_sequences, generator=generator) < pad_probability
        position_R = torch.randint(seq_len + 1, (num_sequences,), generator=generator)
        ids_RT[padded_R, position_R[padded_R]] = pad_id
        return ids_RT

    num_counted = vocab_size
    if 0 <= ignore_index < vocab_size:
        num_counted -= 1
    return Source(
        vocab_size=vocab_size,
        pad_id=pad_id,
        ignore_index=ignore_index,
        train=MatrixRows(sequences()),
        validation=MatrixRows(sequences()),
        vocabulary=None,
        floor_nats=math.log(num_counted),
        description={"sequences": num_sequences, "ids_per_sequence": seq_len + 1},
    )

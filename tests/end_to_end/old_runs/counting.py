# counting.py
from typing import Annotated

import torch
from samout_train.ranges import Positive, validated

from samout_train.data import MatrixRows, Source


@validated
def counting(*, modulus: Annotated[int, Positive], seq_len: Annotated[int, Positive], seed: int) -> Source:
    """Rows that count up by a step of their own, modulo `modulus`; ids 0 to 3 are not used."""
    generator = torch.Generator().manual_seed(seed)
    first, step = (torch.randint(modulus, (200, 1), generator=generator) for _ in range(2))
    ids = 4 + (first + step * torch.arange(seq_len + 1)) % modulus
    return Source(
        vocab_size=4 + modulus,
        pad_id=3,
        ignore_index=3,
        train=MatrixRows(ids[:180]),
        validation=MatrixRows(ids[180:]),
        vocabulary=None,
        floor_nats=None,
        description={"modulus": modulus},
    )

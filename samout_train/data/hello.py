"""Labelling at its smallest: read "hello", say "ohlol". Every position has a label of its own.

Source: the published hello programs: letters e h l o as 0 1 2 3, inputs 1 0 2 2 3, labels 3 1 2 3 2.
"""

# R rows, T time

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samout_train.data.batches import Source
from samout_train.ranges import checked_by

LETTERS = ("e", "h", "l", "o")
INPUTS = (1, 0, 2, 2, 3)
LABELS = (3, 1, 2, 3, 2)


def hello_problems(settings: Mapping[str, Any], name: str) -> list[str]:
    """What is wrong with settings that are right by themselves."""
    ignored = settings["ignore_index"]
    if not 0 <= ignored < len(LETTERS):
        return []
    return [
        f"{name}.ignore_index={ignored}: is the letter {LETTERS[ignored]}, which would not be learned: set it to -100"
    ]


@checked_by(hello_problems)
def hello(*, ignore_index: int, seed: int) -> Source:
    """A source of one row, to learn from and to judge by.

    Args:
        ignore_index: Labels of this value are not counted; 0 to 3 are letters here.
        seed: Of the run; there is nothing to draw.

    Raises:
        ValueError: if a letter is ignored.
    """
    if problems := hello_problems({"ignore_index": ignore_index}, "data"):
        raise ValueError(problems[0])
    rows = LabelledRows(torch.tensor([INPUTS]), torch.tensor([LABELS]))
    return Source(
        vocab_size=len(LETTERS),
        pad_id=None,
        ignore_index=ignore_index,
        train=rows,
        validation=rows,
        vocabulary=None,
        floor_nats=None,
        description={"inputs": "hello", "labels": "ohlol"},
        labels=LETTERS,
    )


hello.labelling = True  # type: ignore[attr-defined]  # so that it is known before anything is built


class LabelledRows:
    """Rows with a label for each position; in memory, inputs and labels stand behind one another.

    Args:
        inputs_RT: Token ids, int64.
        labels_RT: Labels, int64.
    """

    def __init__(self, inputs_RT: Tensor, labels_RT: Tensor) -> None:
        self.ids_R2T = torch.cat([inputs_RT, labels_RT], dim=1)
        self.num_rows = self.num_windows = inputs_RT.shape[0]
        self.seq_len = inputs_RT.shape[1]

    def take(self, indices: NDArray[np.int64], epoch: int) -> Tensor:
        """The rows of these indices, (R, 2 T); the same in each epoch."""
        return self.ids_R2T[torch.from_numpy(indices)]

    def windows(self, start: int, stop: int) -> Tensor:
        """The rows as they lie, (R, 2 T)."""
        return self.ids_R2T[start:stop]

    def split(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and labels, (..., T) each."""
        return ids[..., : self.seq_len], ids[..., self.seq_len :]

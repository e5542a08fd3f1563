"""Rows in which each position has a label of its own, given beside the inputs."""

# R rows, T time

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.integer[Any]]
# From a generator, a number of rows and their length to inputs and labels, (R, T) each.
Draw = Callable[[np.random.Generator, int, int], tuple[Ids, Ids]]


class LabelledRows:
    """Rows in memory, where inputs and labels stand behind one another.

    Args:
        inputs_RT: Token ids, any integer dtype.
        labels_RT: Labels, the same dtype.
    """

    def __init__(self, inputs_RT: Tensor, labels_RT: Tensor) -> None:
        self.ids_R2T = torch.cat([inputs_RT, labels_RT], dim=1)
        self.num_rows = self.num_windows = inputs_RT.shape[0]
        self.seq_len = inputs_RT.shape[1]

    def take(self, indices: NDArray[np.int64], epoch: int) -> Tensor:
        """The rows of these indices, (R, 2 T) int64; the same in each epoch."""
        return self.ids_R2T[torch.from_numpy(indices)].long()

    def windows(self, start: int, stop: int) -> Tensor:
        """The rows as they lie, (R, 2 T) int64."""
        return self.ids_R2T[start:stop].long()

    def split(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and labels, (..., T) each."""
        return ids[..., : self.seq_len], ids[..., self.seq_len :]


class DrawnRows:
    """Rows drawn from a seed when they are first asked for, other ones in each epoch: nothing can be learned by heart.

    Args:
        draw: Draws them.
        num_rows: Rows of an epoch.
        seq_len: Their length T.
        seed: With the epoch, decides what is drawn.
    """

    def __init__(self, draw: Draw, *, num_rows: int, seq_len: int, seed: tuple[int, ...]) -> None:
        self.draw, self.seed = draw, seed
        self.num_rows = self.num_windows = num_rows
        self.seq_len = seq_len
        self._epochs: dict[int, LabelledRows] = {}

    def take(self, indices: NDArray[np.int64], epoch: int) -> Tensor:
        """Rows of an epoch, (R, 2 T) int64."""
        return self._drawn(epoch).take(indices, epoch)

    def windows(self, start: int, stop: int) -> Tensor:
        """Rows of the first epoch, (R, 2 T) int64."""
        return self._drawn(0).windows(start, stop)

    def split(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and labels, (..., T) each."""
        return ids[..., : self.seq_len], ids[..., self.seq_len :]

    def _drawn(self, epoch: int) -> LabelledRows:
        if epoch not in self._epochs:
            # A batch may hold the end of one epoch and the start of the next.
            self._epochs = {old: rows for old, rows in self._epochs.items() if old == epoch - 1}
            parts = self.draw(np.random.default_rng((*self.seed, epoch)), self.num_rows, self.seq_len)
            inputs_RT, labels_RT = (torch.from_numpy(part.astype(np.int32)) for part in parts)
            self._epochs[epoch] = LabelledRows(inputs_RT, labels_RT)
        return self._epochs[epoch]

"""From rows of token ids to batches: which rows, in which order, and how they reach the device.

The order is a pure function of seed, epoch and position (`shuffle.py`), so a continued run needs nothing but its step.
"""

# R rows, T time; a row of ids has T + 1: inputs are its first T, targets its last T

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samout_train.data.shuffle import RowOrder
from samout_train.data.text.documents import LineEnds
from samout_train.data.vocabulary.base import Vocabulary
from samout_train.runtime import distributed, to_device

TARGETS_DRAWN_TOGETHER = 1 << 16


class Rows(Protocol):
    """One split of a source, as rows of seq_len + 1 ids.

    Rows come shuffled in each epoch; those with an attribute `has_own_order` that is true come as their indices count.
    """

    seq_len: int
    num_rows: int
    num_windows: int

    def take(self, indices: NDArray[np.int64], epoch: int) -> Tensor:
        """For training: rows of one epoch, (R, T + 1) int64; indices are below num_rows."""
        ...

    def windows(self, start: int, stop: int) -> Tensor:
        """For evaluation: rows start to stop of the num_windows that cover the whole split once, (R, T + 1) int64."""
        ...

    def split(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets, (..., T) each, of rows that `take` or `windows` gave."""
        ...


def next_token(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The targets of a row are its inputs, one to the left: (..., T + 1) to two of (..., T)."""
    return ids[..., :-1], ids[..., 1:]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a data source gives to the rest of the program.

    Args:
        vocab_size: Number of token ids V.
        pad_id: The id that fills rows; None where there is none.
        ignore_index: Targets of this value are not counted.
        train: The rows to learn from.
        validation: The rows to judge by.
        vocabulary: Ids to text; None where ids are no text.
        floor_nats: The loss that nothing can beat on the validation rows; None where it is not known.
        description: What was read, for the record: sizes, digest, files.
        labels: Where targets are labels, the name of each, by id; what makes the source has `labelling = True` then.
        tests: Further rows to judge by, by name: those of a task, at other lengths than it is learned at.
        chance: Of a task, the accuracy of guessing; None elsewhere.
        line_ends: How line ends were read, and how those of prompts are: `keep` or `fold`.

    Raises:
        ValueError: if there is padding and it would be learned.
    """

    vocab_size: int
    pad_id: int | None
    ignore_index: int
    train: Rows
    validation: Rows
    vocabulary: Vocabulary | None
    floor_nats: float | None
    description: dict[str, object]
    labels: Sequence[str] | None = None
    tests: Mapping[str, Rows] = field(default_factory=dict)
    chance: float | None = None
    line_ends: LineEnds = "keep"

    def __post_init__(self) -> None:
        if self.pad_id is not None and self.pad_id != self.ignore_index:
            raise ValueError(
                f"data.ignore_index ({self.ignore_index}) must be the padding id ({self.pad_id}), or padding is learned"
            )


class MatrixRows:
    """Rows that lie in memory as they are.

    Args:
        ids_RT: (R, T + 1) int64.
    """

    split = staticmethod(next_token)

    def __init__(self, ids_RT: Tensor) -> None:
        self.ids_RT = ids_RT
        self.num_rows = self.num_windows = ids_RT.shape[0]
        self.seq_len = ids_RT.shape[1] - 1

    def take(self, indices: NDArray[np.int64], epoch: int) -> Tensor:
        """The rows of these indices; the same in each epoch."""
        return self.ids_RT[torch.from_numpy(indices)]

    def windows(self, start: int, stop: int) -> Tensor:
        """The rows as they lie."""
        return self.ids_RT[start:stop]


@dataclass(frozen=True)
class Batch:
    """What one optimizer step learns from.

    Args:
        ids_RT: (R, T + 1) int64, on the device: the rows of this process.
        num_targets: Counted targets of all processes, known without asking the device.
        own_targets: Counted targets of these rows.
    """

    ids_RT: Tensor
    num_targets: int
    own_targets: int


class Batches:
    """The batches of a run, by step.

    Args:
        rows: The rows to draw from.
        batch_size: Rows in a batch, over all processes. A batch may hold the end of one epoch and the start of the
            next. Each process draws its own share of the rows, as many as any other.
        seed: Decides the order of rows in each epoch.
        ignore_index: Targets of this value are not counted.
        device: Where batches go. On CUDA the next one is drawn, pinned and its copy queued while the device works.
        overfit_batches: Above 0, only that many first batches, again and again.
    """

    def __init__(
        self, rows: Rows, *, batch_size: int, seed: int, ignore_index: int, device: torch.device, overfit_batches: int
    ) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.ignore_index, self.device, self.overfit_batches = ignore_index, device, overfit_batches
        self._order = RowOrder(rows.num_rows, seed, shuffle=not getattr(rows, "has_own_order", False))
        self._ahead: tuple[int, Batch] | None = None
        self._own_rows = batch_size // distributed.count()
        # Small batches are drawn many at a time: one by one, the drawing of 12 rows of 64 takes 2 % of a small step.
        self._steps_together = max(1, TARGETS_DRAWN_TOGETHER // (self._own_rows * rows.seq_len))
        self._block = -1
        self._drawn: list[tuple[Tensor, int]] = []

    def on_host(self, step: int) -> tuple[Tensor, int]:
        """This process's rows in the batch of step 0, 1, 2 ...: (R, T + 1) int64 in ordinary memory, and their number
        of counted targets."""
        if self.overfit_batches:
            step %= self.overfit_batches
        block, place = divmod(step, self._steps_together)
        if block != self._block:
            steps = range(block * self._steps_together, (block + 1) * self._steps_together)
            if self._own_rows == self.batch_size:
                ids = self._rows_from(steps[0] * self.batch_size, len(steps) * self.batch_size)
            else:
                first = distributed.rank() * self._own_rows
                ids = torch.cat([self._rows_from(one * self.batch_size + first, self._own_rows) for one in steps])
            ids = ids.view(len(steps), self._own_rows, -1)
            counts = (self.rows.split(ids)[1] != self.ignore_index).sum((1, 2)).tolist()
            self._block, self._drawn = block, list(zip(ids.unbind(), counts, strict=True))
        return self._drawn[place]

    def num_targets(self, step: int) -> int:
        """Return the number of counted targets of a step's batch, over all processes; all ask for it together."""
        return distributed.total(self.on_host(step)[1])

    def get(self, step: int) -> Batch:
        """The batch of a step, on the device."""
        if self._ahead and self._ahead[0] == step:
            return self._ahead[1]
        ids_RT, own_targets = self.on_host(step)
        return Batch(to_device(ids_RT, self.device), distributed.total(own_targets), own_targets)

    def prepare(self, step: int) -> None:
        """Sends the batch of a later step on its way, while the device is busy with this one's."""
        if self.device.type == "cuda":
            self._ahead = (step, self.get(step))

    def places(self, step: int) -> list[tuple[int, int]]:
        """Epoch and index of each row of a step's batch."""
        step = step % self.overfit_batches if self.overfit_batches else step
        pieces = self._order.pieces(step * self.batch_size, self.batch_size)
        return [(epoch, int(index)) for epoch, indices in pieces for index in indices]

    def _rows_from(self, first: int, count: int) -> Tensor:
        """Rows of the endless stream of epochs, from its row `first` on."""
        pieces = [self.rows.take(indices, epoch) for epoch, indices in self._order.pieces(first, count)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

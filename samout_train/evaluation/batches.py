"""Provide batches of a split to evaluate on: all of them in order, or some spread over the split."""

# R rows, T time

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from torch import Tensor

from samout_train.data import Rows


def in_order(rows: Rows, rows_per_batch: int) -> Iterator[Tensor]:
    """Yield a whole split once, in order, as (R, T + 1) int64 with R at most rows_per_batch."""
    for start in range(0, rows.num_windows, rows_per_batch):
        yield rows.windows(start, start + rows_per_batch)


def has_targets(rows: Rows, ids_RT: Tensor, ignore_index: int) -> bool:
    """Return whether a batch of these rows has a counted target."""
    return bool((rows.split(ids_RT)[1] != ignore_index).any())


class SpreadBatches(Sequence[Tensor]):
    """At most num_batches of the batches of `in_order`, evenly spread over the split and read on access.

    Args:
        rows: The split.
        rows_per_batch: Rows in each batch but the last.
        num_batches: Largest number of batches.
        ignore_index: Targets of this value are not counted. A batch without counted targets is replaced by the next
            one with some; None to keep every batch.
    """

    def __init__(self, rows: Rows, rows_per_batch: int, num_batches: int, *, ignore_index: int | None = None) -> None:
        starts = range(0, rows.num_windows, rows_per_batch)
        picks = np.unique(np.linspace(0, len(starts) - 1, min(num_batches, len(starts))).round().astype(int))
        self.rows, self.rows_per_batch = rows, rows_per_batch
        self._starts = [starts[int(pick)] for pick in picks]
        if ignore_index is not None:
            counted = {self._next_counted(start, starts, ignore_index) for start in self._starts}
            self._starts = sorted(counted)

    def _next_counted(self, start: int, starts: Sequence[int], ignore_index: int) -> int:
        place = starts.index(start)
        for one in (*starts[place:], *starts[:place]):
            if has_targets(self.rows, self.rows.windows(one, one + self.rows_per_batch), ignore_index):
                return one
        return start

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        """Return a batch, (R, T + 1) int64, or a list of them."""
        starts = self._starts[index]
        if isinstance(starts, list):
            return [self.rows.windows(start, start + self.rows_per_batch) for start in starts]
        return self.rows.windows(starts, starts + self.rows_per_batch)

"""Draw batches from rows of token ids: their order, each process's share, and the copy to the device.

The order is a pure function of seed, epoch and position (`shuffle.py`), so a resumed run needs only its step.
"""

# R rows, T time; a row of ids has T + 1: inputs are its first T, targets its last T

from dataclasses import dataclass

import torch
from torch import Tensor

from samout_train.data.boundaries import Part, parts_of
from samout_train.data.shuffle import RowOrder
from samout_train.data.source import MatrixRows as MatrixRows, Rows as Rows, Source as Source  # old imports
from samout_train.runtime import distributed, to_device

TARGETS_DRAWN_TOGETHER = 1 << 16


@dataclass(frozen=True)
class Batch:
    """The data of one optimizer step.

    Args:
        ids_RT: The rows of this process, (R, T + 1) int64, on the device, or on the CPU if they are to be split.
        num_targets: Counted targets of all processes, kept on the host so that reading them waits for no device.
        own_targets: Counted targets of this process's rows.
    """

    ids_RT: Tensor
    num_targets: int
    own_targets: int


class Batches:
    """The batches of a run, by step.

    Args:
        rows: The rows to draw from.
        batch_size: Rows in a batch over all processes, which get equal shares. A batch may hold the end of one epoch
            and the start of the next.
        seed: Seed of the order of rows in each epoch.
        ignore_index: Targets of this value are not counted.
        device: Device of the batches. On CUDA, the next batch is drawn and copied while the device works.
        overfit_batches: If above 0, repeat only the first `overfit_batches` batches.
        document_id: The id that begins a document, to split rows there; None to keep rows whole.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        batch_size: int,
        seed: int,
        ignore_index: int,
        device: torch.device,
        overfit_batches: int,
        document_id: int | None = None,
    ) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.ignore_index, self.device, self.overfit_batches = ignore_index, device, overfit_batches
        self.document_id = document_id
        self._order = RowOrder(rows.num_rows, seed, shuffle=not getattr(rows, "has_own_order", False))
        self._ahead: tuple[int, Batch] | None = None
        self._own_rows = batch_size // distributed.count()
        # Draw small batches several at a time: drawing 12 rows of 64 one batch at a time takes 2 % of a small step.
        self._steps_together = max(1, TARGETS_DRAWN_TOGETHER // (self._own_rows * rows.seq_len))
        self._block = -1
        self._drawn: list[tuple[Tensor, int]] = []

    def on_host(self, step: int) -> tuple[Tensor, int]:
        """Return this process's rows of a step's batch, (R, T + 1) int64 on the CPU, and the number of counted targets.

        The first step is 0.
        """
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
        """Return the number of counted targets of a step's batch over all processes. This is a collective call."""
        return distributed.total(self.on_host(step)[1])

    def get(self, step: int) -> Batch:
        """Return the batch of a step."""
        if self._ahead and self._ahead[0] == step:
            return self._ahead[1]
        ids_RT, own_targets = self.on_host(step)
        if self.document_id is None:
            ids_RT = to_device(ids_RT, self.device)
        return Batch(ids_RT, distributed.total(own_targets), own_targets)

    def parts(self, ids_RT: Tensor, *, micro_steps: int, chunk_len: int | None, few_shapes: bool) -> list[Part]:
        """Return inputs and targets of a batch on the device, in parts for micro-steps with equal numbers of rows.

        Args:
            ids_RT: The rows of a batch.
            micro_steps: Number of micro-steps.
            chunk_len: Targets of a row in one call of the model; None for all.
            few_shapes: Whether parts may have only few different shapes.
        """
        parts = []
        for share_RT in ids_RT.chunk(micro_steps):
            inputs_RT, targets_RT = self.rows.split(share_RT)
            if self.document_id is None:
                parts.append(Part(inputs_RT, targets_RT))
                continue
            for inputs_NL, targets_NL in parts_of(
                inputs_RT,
                targets_RT,
                document_id=self.document_id,
                ignore_index=self.ignore_index,
                chunk_len=chunk_len,
                few_shapes=few_shapes,
            ):
                parts.append(Part(to_device(inputs_NL, self.device), to_device(targets_NL, self.device)))
        return parts

    def prepare(self, step: int) -> None:
        """Start the copy of a later step's batch while the device is busy with the current one."""
        if self.device.type == "cuda":
            self._ahead = (step, self.get(step))

    def places(self, step: int) -> list[tuple[int, int]]:
        """Return the epoch and the index of each row of a step's batch."""
        if self.overfit_batches:
            step %= self.overfit_batches
        places: list[tuple[int, int]] = []
        for epoch, indices in self._order.pieces(step * self.batch_size, self.batch_size):
            for index in indices.tolist():
                places.append((epoch, index))
        return places

    def _rows_from(self, first: int, count: int) -> Tensor:
        """Return `count` rows of the endless stream of epochs, from row `first`."""
        pieces = [self.rows.take(indices, epoch) for epoch, indices in self._order.pieces(first, count)]
        if len(pieces) == 1:
            return pieces[0]
        return torch.cat(pieces)

"""Loss on rows that are given, dropout off, each row from a fresh state."""

# R rows, T time

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor, nn

from samout_train.data import Rows, Source
from samout_train.models import nats_and_state
from samout_train.runtime import Bar, PrecisionName, autocast, distributed, float64_place, is_terminal, to_device


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Args:
        nats: Sum over all counted targets.
        num_targets: How many these are.
        num_bytes: UTF-8 bytes that they stand for; 0 where ids are no text.
        empty_batches: Batches without a counted target, which were left out.
    """

    nats: float
    num_targets: int
    num_bytes: int
    empty_batches: int = 0

    @property
    def loss_nats(self) -> float:
        """Return the mean nats per counted target."""
        return self.nats / self.num_targets

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per UTF-8 byte; None where ids are no text."""
        return self.nats / math.log(2) / self.num_bytes if self.num_bytes else None


def evaluate(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    source: Source,
    device: torch.device,
    precision: PrecisionName,
    num_batches: int | None = None,
    check_stop: Callable[[], None] = lambda: None,
    chunk_len: int | None = None,
    together: bool = False,
) -> Evaluation:
    """Evaluates a model; its mode is put back.

    Args:
        model: Called as `logits, state = model(ids)`.
        batches: (R, T + 1) ids each, in ordinary memory.
        source: Says which targets count and how many bytes each id stands for.
        device: Where the model is.
        precision: Of the forward pass.
        num_batches: How many there are, for the progress bar that is shown from the second second on.
        check_stop: Called before each batch; what it raises ends the evaluation.
        chunk_len: Targets of a row that are read at a time, with the state carried on; None for whole rows.
        together: Whether all processes of the run are here, each for its share of the rows.

    Returns:
        Sums over all batches. The device is waited for once, at the end.
    """
    token_bytes = torch.from_numpy(source.vocabulary.token_bytes()) if source.vocabulary else None
    nats = torch.zeros((), dtype=torch.float64, device=float64_place(device))
    num_targets = num_bytes = empty_batches = 0
    was_training = model.training
    model.eval()
    try:
        interval = 0.1 if is_terminal(sys.stderr) else 10.0
        bar = Bar(batches, desc="evaluating", total=num_batches, delay=2, leave=False, mininterval=interval)
        with torch.inference_mode(), bar:
            for ids_RT in bar:
                check_stop()
                if not has_targets(source.validation, ids_RT, source.ignore_index):
                    empty_batches += 1
                    continue
                if together:
                    ids_RT = ids_RT.tensor_split(distributed.count())[distributed.rank()]
                targets_RT = source.validation.split(ids_RT)[1]
                counted = targets_RT[targets_RT != source.ignore_index]
                num_targets += counted.numel()
                num_bytes += int(token_bytes[counted].sum()) if token_bytes is not None else 0
                inputs_RT, targets_RT = source.validation.split(to_device(ids_RT, device))
                rows = (inputs_RT, targets_RT, source.ignore_index, counted.numel())
                with autocast(precision, device):
                    nats += _nats_of_rows(model, *rows, chunk_len=chunk_len)
    finally:
        model.train(was_training)
    found = Evaluation(float(nats), num_targets, num_bytes, empty_batches)
    found = _of_all_processes(found) if together and distributed.count() > 1 else found
    if found.num_targets == 0:
        raise ValueError(f"every target is {source.ignore_index}, which is ignored: there is nothing to evaluate")
    return found


def _of_all_processes(own: Evaluation) -> Evaluation:
    """Return the sums over the shares of all processes; each has seen the same empty batches."""
    sums = torch.tensor([own.nats, own.num_targets, own.num_bytes], dtype=torch.float64)
    nats, num_targets, num_bytes = distributed.summed(sums)
    return Evaluation(float(nats), int(num_targets), int(num_bytes), own.empty_batches)


def _nats_of_rows(
    model: nn.Module,
    inputs_RT: Tensor,
    targets_RT: Tensor,
    ignore_index: int,
    num_counted: int,
    *,
    chunk_len: int | None,
) -> Tensor:
    nats, state = torch.zeros((), dtype=torch.float64, device=float64_place(inputs_RT.device)), None
    num_rows, num_times = targets_RT.shape
    length = chunk_len or num_times
    for start in range(0, num_times if num_rows else 0, length):
        inputs, targets = inputs_RT[:, start : start + length], targets_RT[:, start : start + length]
        chunk_nats, state = nats_and_state(
            model, inputs, targets, ignore_index, min(num_counted, targets.numel()), state
        )
        nats += chunk_nats.to(nats.device)
    return nats


def in_order(rows: Rows, rows_per_batch: int) -> Iterator[Tensor]:
    """Return a whole split once, front to back, as (R, T + 1) int64 with R at most rows_per_batch."""
    for start in range(0, rows.num_windows, rows_per_batch):
        yield rows.windows(start, start + rows_per_batch)


def has_targets(rows: Rows, ids_RT: Tensor, ignore_index: int) -> bool:
    """Return whether a batch of these rows has a target that is counted."""
    return bool((rows.split(ids_RT)[1] != ignore_index).any())


class SpreadBatches(Sequence[Tensor]):
    """At most num_batches of the batches of `in_order`, evenly spread over the split, each read when it is asked for.

    Args:
        rows: The split.
        rows_per_batch: Rows in each, but for the last.
        num_batches: How many at the most.
        ignore_index: Targets of this value are not counted: in place of a batch without others comes the next one
            that has some. None to take each batch as it is.
    """

    def __init__(self, rows: Rows, rows_per_batch: int, num_batches: int, *, ignore_index: int | None = None) -> None:
        starts = range(0, rows.num_windows, rows_per_batch)
        picks = np.unique(np.linspace(0, len(starts) - 1, min(num_batches, len(starts))).round().astype(int))
        self.rows, self.rows_per_batch = rows, rows_per_batch
        self._starts = [starts[int(pick)] for pick in picks]
        if ignore_index is not None:
            self._starts = sorted({self._next_counted(start, starts, ignore_index) for start in self._starts})

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
        """Rows of ids, (R, T + 1) int64, or several such."""
        starts = self._starts[index]
        if isinstance(starts, list):
            return [self.rows.windows(start, start + self.rows_per_batch) for start in starts]
        return self.rows.windows(starts, starts + self.rows_per_batch)

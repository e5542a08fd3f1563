"""Rows of tokens: windows of one long stream, or documents filled with padding."""

# R rows, T time; a row of ids has T + 1

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samout_train.data.source import next_token
from samout_train.data.text.mapped import release, rows_at
from samout_train.data.vocabulary.base import PAD_ID


class TokenRows:
    """Windows of one long stream of tokens.

    The windows of an epoch do not overlap: each token is a target once, except some before the epoch's first window,
    whose start is random, and after its last window. So each epoch cuts at other places.

    Args:
        tokens: (N,) ids of any integer dtype; pages read from a memory map are released.
        seq_len: Targets T in a row; N must be at least T + 1.
        seed: Seed of the start of each epoch's first window.

    Raises:
        ValueError: if the stream is shorter than one row.
    """

    split = staticmethod(next_token)

    def __init__(self, tokens: NDArray[np.integer], *, seq_len: int, seed: int) -> None:
        if len(tokens) < seq_len + 1:
            raise ValueError(
                f"data.seq_len ({seq_len}) needs {seq_len + 1} tokens, this part of the text has {len(tokens)}: "
                f"set data.seq_len to {max(1, len(tokens) - 1)} or less, or use a longer text"
            )
        self.tokens: NDArray[np.integer] = np.asarray(tokens)  # numpy's memmap class is slow to index
        self.seq_len, self.seed = seq_len, seed
        self.num_rows = max(1, (len(tokens) - seq_len) // seq_len)
        self.num_windows = -(-(len(tokens) - 1) // seq_len)
        self._offsets = np.arange(seq_len + 1)
        self._firsts: dict[int, int] = {}

    def take(self, indices: NDArray[np.int64], epoch: int) -> Tensor:
        """Return the windows of these indices in an epoch, (R, T + 1) int64."""
        starts = self._first(epoch) + indices * self.seq_len
        return torch.from_numpy(rows_at(self.tokens, starts[:, None] + self._offsets))

    def _first(self, epoch: int) -> int:
        if epoch not in self._firsts:
            free = len(self.tokens) - self.num_rows * self.seq_len
            self._firsts[epoch] = int(np.random.default_rng((self.seed, epoch, 1)).integers(min(free, self.seq_len)))
        return self._firsts[epoch]

    def windows(self, start: int, stop: int) -> Tensor:
        """Return windows start to stop - 1 of the consecutive windows from the first token on, (R, T + 1) int64.

        The last window is filled with padding, so that every token but the first is a target exactly once.
        """
        stop = min(stop, self.num_windows)
        ids = np.full((stop - start) * self.seq_len + 1, PAD_ID, dtype=np.int64)
        chunk = self.tokens[start * self.seq_len : stop * self.seq_len + 1]
        ids[: len(chunk)] = chunk
        release(self.tokens)
        overlapping = np.lib.stride_tricks.sliding_window_view(ids, self.seq_len + 1)[:: self.seq_len]
        return torch.from_numpy(overlapping.copy())


class PaddedRows:
    """Rows that begin with a document or continue one, filled with padding after its end.

    Args:
        tokens: (N,) ids of all documents.
        documents: (documents, 2): the start of each, at its `<|sos|>`, and its end. No row contains the `<|sos|>`.
            Documents with fewer than two further tokens have no target and are left out.
        seq_len: Targets T in a row.

    Raises:
        ValueError: if no document has a target.
    """

    split = staticmethod(next_token)

    def __init__(self, tokens: NDArray[np.integer], documents: NDArray[np.int64], *, seq_len: int) -> None:
        self.tokens, self.seq_len, self._documents = np.asarray(tokens), seq_len, documents
        num_targets, rows_each = targets_and_rows(documents, seq_len)
        self._row_ends = np.cumsum(rows_each)  # by document; one entry per row would be more
        self.num_rows = self.num_windows = int(rows_each.sum())
        self.num_targets = int(num_targets.sum())
        if not self.num_rows:
            raise ValueError("data.path: in one split every document has fewer than two tokens: use longer ones")

    def take(self, indices: NDArray[np.int64], epoch: int) -> Tensor:
        """Return the rows of these indices, (R, T + 1) int64; the same in each epoch."""
        documents = np.searchsorted(self._row_ends, indices, side="right")
        starts, ends = self._documents[documents].T
        _, rows_each = targets_and_rows(self._documents[documents], self.seq_len)
        starts = starts + 1 + (indices - self._row_ends[documents] + rows_each) * self.seq_len
        places = starts[:, None] + np.arange(self.seq_len + 1)
        inside = places < ends[:, None]
        ids = rows_at(self.tokens, np.where(inside, places, starts[:, None] - 1))
        return torch.from_numpy(np.where(inside, ids, PAD_ID))

    def windows(self, start: int, stop: int) -> Tensor:
        """Return rows start to stop - 1, in the order of the documents."""
        return self.take(np.arange(start, min(stop, self.num_rows)), 0)


def targets_and_rows(documents: NDArray[np.int64], seq_len: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of targets of each document, and the number of padded rows for them."""
    num_targets = np.maximum(documents[:, 1] - documents[:, 0] - 2, 0)
    return num_targets, -(-num_targets // seq_len)

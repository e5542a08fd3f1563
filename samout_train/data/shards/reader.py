"""Pieces of shards, read where they lie.

Shards are not mapped into memory: a page that was read once would count as this process's until it is given back, and
with the giving back a map is no faster. Of 1 GB in 16 files, random rows of 256 came at 231 to 242 million tokens a
second by `preadv` and at 217 to 231 million from maps that were given back every 2,000 rows; with every 4,000 rows the
maps were faster and held all of the files.
"""

# R rows, W ids of a row

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samout_train.data.shards.index import AGAIN
from samout_train.data.vocabulary.base import PAD_ID

MOST_OPEN = 256  # of 1,024 that a process may have on many systems


@dataclass(frozen=True)
class Places:
    """The places of rows.

    Args:
        shards: (R,) the number of each one's shard.
        starts: (R,) its first token there.
        counts: (R,) its tokens.
    """

    shards: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, num_rows: int) -> "Places":
        """Return places that are to be put in."""
        return cls(np.empty(num_rows, np.int64), np.empty(num_rows, np.int64), np.empty(num_rows, np.int64))

    def __getitem__(self, rows: NDArray[np.int64]) -> "Places":
        """Some of them."""
        return Places(self.shards[rows], self.starts[rows], self.counts[rows])

    def put(self, rows: NDArray[np.int64], found: "Places") -> None:
        """Set where some of them are."""
        self.shards[rows], self.starts[rows], self.counts[rows] = found.shards, found.starts, found.counts


class ShardReader:
    """Reads from files of ids, of which it keeps some open; threads may share it.

    Args:
        paths: The files.
        dtype: Of their ids.
    """

    def __init__(self, paths: Sequence[Path], dtype: "np.dtype[Any]") -> None:
        self.paths, self.dtype = list(paths), dtype
        self._open: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._open)

    def read(self, places: Places, width: int) -> NDArray[np.int64]:
        """Return rows of ids, (R, W), filled with padding where there are fewer.

        Raises:
            OSError: if a file has fewer than it should have.
        """
        size, row_bytes = self.dtype.itemsize, self.dtype.itemsize * width
        ids_RW = np.full((len(places.shards), width), PAD_ID, dtype=self.dtype)
        into = ids_RW.data.cast("B")
        begins = range(0, len(into), row_bytes)
        shards = places.shards.tolist()
        offsets = (places.starts * size).tolist()
        lengths = (places.counts * size).tolist()
        with self._lock:
            for begin, shard, offset, length in zip(begins, shards, offsets, lengths, strict=True):
                file = self._open.get(shard)
                if file is None:
                    file = self._opened(shard)
                found = _read_at(file, (into[begin : begin + length],), offset)
                if found != length:
                    self._refuse(shard, offset + found, offset + length)
        return ids_RW.astype(np.int64)

    def _opened(self, shard: int) -> int:
        if len(self._open) >= MOST_OPEN:
            os.close(self._open.popitem(last=False)[1])
        file = self._open[shard] = os.open(self.paths[shard], os.O_RDONLY | getattr(os, "O_BINARY", 0))
        return file

    def _refuse(self, shard: int, end: int, wanted: int) -> None:
        raise OSError(
            f"{self.paths[shard]} ends at byte {end:,}, and its index says that there are {wanted:,} or more: {AGAIN}"
        )


def _close(files: OrderedDict[int, int]) -> None:
    for file in files.values():
        os.close(file)


def _seek_and_read(file: int, buffers: tuple[memoryview], offset: int) -> int:
    os.lseek(file, offset, os.SEEK_SET)
    content = os.read(file, len(buffers[0]))
    buffers[0][: len(content)] = content
    return len(content)


_read_at: Callable[[int, tuple[memoryview], int], int] = getattr(os, "preadv", _seek_and_read)

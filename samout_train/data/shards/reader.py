"""Read rows from the files of shards.

Shards are not memory-mapped: each page that was read counts as memory of the process until it is released, and with
releases a map is no faster. On 1 GB in 16 files, reading random rows of 256 reached 231 to 242 million tokens/s with
`preadv`, and 217 to 231 million with maps released every 2,000 rows. Maps released every 4,000 rows were faster, but
kept all files in memory.
"""

# R rows, W ids in a row

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

MOST_OPEN = 256  # files; many systems allow 1,024 per process


@dataclass(frozen=True)
class Places:
    """The places of rows in shards.

    Args:
        shards: (R,) index of each row's shard.
        starts: (R,) its first token in the shard.
        counts: (R,) its number of tokens.
    """

    shards: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, num_rows: int) -> "Places":
        """Return uninitialised places, to fill with `put`."""
        return cls(np.empty(num_rows, np.int64), np.empty(num_rows, np.int64), np.empty(num_rows, np.int64))

    def __getitem__(self, rows: NDArray[np.int64]) -> "Places":
        """Return the places of some rows."""
        return Places(self.shards[rows], self.starts[rows], self.counts[rows])

    def put(self, rows: NDArray[np.int64], found: "Places") -> None:
        """Set the places of some rows."""
        self.shards[rows], self.starts[rows], self.counts[rows] = found.shards, found.starts, found.counts


class ShardReader:
    """Reads rows from files of ids, and keeps up to MOST_OPEN files open. Thread-safe."""

    def __init__(self, paths: Sequence[Path], dtype: "np.dtype[Any]") -> None:
        self.paths, self.dtype = list(paths), dtype
        self._open: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._open)

    def read(self, places: Places, width: int) -> NDArray[np.int64]:
        """Return rows of ids, (R, W), with padding after short rows.

        Raises:
            OSError: if a file is too short.
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
                    raise OSError(_cut_short(self.paths[shard], offset + found, offset + length))
        return ids_RW.astype(np.int64)

    def _opened(self, shard: int) -> int:
        if len(self._open) >= MOST_OPEN:
            os.close(self._open.popitem(last=False)[1])
        file = self._open[shard] = os.open(self.paths[shard], os.O_RDONLY | getattr(os, "O_BINARY", 0))
        return file


def _cut_short(path: Path, end: int, wanted: int) -> str:
    return f"{path} ends at byte {end:,}, and its index expects {wanted:,} or more: {AGAIN}"


def _close(files: OrderedDict[int, int]) -> None:
    for file in files.values():
        os.close(file)


def _seek_and_read(file: int, buffers: tuple[memoryview], offset: int) -> int:
    os.lseek(file, offset, os.SEEK_SET)
    content = os.read(file, len(buffers[0]))
    buffers[0][: len(content)] = content
    return len(content)


_read_at: Callable[[int, tuple[memoryview], int], int] = getattr(os, "preadv", _seek_and_read)

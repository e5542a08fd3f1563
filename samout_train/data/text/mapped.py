"""Read memory-mapped tokens in bounded memory.

A page of a map that was read counts as memory of the process until it is released. It stays in the system's cache.
"""

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS_TOGETHER = 32  # read between releases; the system maps up to 2 MiB around each row


def blocks_of(tokens: NDArray[Any], size: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield blocks of tokens with the place of their first token; pages of a map are released after use.

    Args:
        tokens: (N,) ids.
        size: Tokens of a block; the last one may be shorter.
    """
    for first in range(0, len(tokens), size):
        yield first, np.asarray(tokens[first : first + size])
        release(tokens)


def rows_at(tokens: NDArray[np.integer], places_RT: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the tokens at these places, (R, T); pages read from a map are released."""
    ids_RT = np.empty(places_RT.shape, dtype=np.int64)
    for first in range(0, len(places_RT), ROWS_TOGETHER):
        rows = slice(first, first + ROWS_TOGETHER)
        ids_RT[rows] = tokens[places_RT[rows]]
        release(tokens)
    return ids_RT


def release(tokens: NDArray[Any]) -> None:
    """Release the pages that were read from a read-only map; the system reads them again if needed."""
    array: Any = tokens
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap) and array.mode != "r":
            return
        array = array.base
    if isinstance(array, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.madvise(mmap.MADV_DONTNEED)

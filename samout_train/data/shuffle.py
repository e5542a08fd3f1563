"""The order of rows as a function of seed, epoch and position: a keyed bijection that stores nothing.

A Feistel network permutes 0 to 4**h - 1, the smallest such range that covers the size. Values outside the size pass
through it again until they fall inside ("cycle walking"), so the result is still a bijection. The round function is
the finalizer of SplitMix64. All arithmetic is modulo 2**64, so the order is the same on every platform.

Source: J. Black and P. Rogaway, Ciphers with Arbitrary Finite Domains, 2002; G. Steele, D. Lea and C. Flood, Fast
Splittable Pseudorandom Number Generators, 2014.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Uint64s = NDArray[np.uint64]
Key = int | NDArray[np.int64]
LARGEST_SIZE = 1 << 62
ROUNDS = 6
SMALL_HALF_BITS, SMALL_ROUNDS = 3, 10  # with 8 rounds, not all pairs of 5 values were equally likely
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ORDERED_TOGETHER = 1 << 13


class RowOrder:
    """The endless stream of epochs, each with every row once.

    Args:
        num_rows: Rows of an epoch.
        seed: Seed of their order in each epoch.
        shuffle: Whether to shuffle; otherwise rows come in the order of their indices.
    """

    def __init__(self, num_rows: int, seed: int, *, shuffle: bool) -> None:
        self.num_rows, self.seed, self.shuffle = num_rows, seed, shuffle
        self._known = 0, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)

    def pieces(self, first: int, count: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield `count` rows of the stream from row `first`: for each epoch, its number and the indices of its rows."""
        begin, epochs, indices = self._known
        if not begin <= first <= first + count <= begin + len(epochs):
            begin = first
            together = max(count, ORDERED_TOGETHER)  # a batch at a time, this would be slower than reading rows
            epochs, indices = np.divmod(np.arange(first, first + together), self.num_rows)
            if self.shuffle:
                indices = shuffled(indices, self.num_rows, self.seed, epochs)
            self._known = begin, epochs, indices
        there = slice(first - begin, first - begin + count)
        epochs, indices = epochs[there], indices[there]
        for start, stop in pairwise([0, *(np.flatnonzero(np.diff(epochs)) + 1).tolist(), count]):
            yield int(epochs[start]), indices[start:stop]


def shuffled(places: NDArray[np.int64], size: int, *key: Key) -> NDArray[np.int64]:
    """Return the values at some places of the shuffled range 0 to size - 1.

    Args:
        places: From 0 to size - 1.
        size: The size of the range, from 1 to 2**62.
        key: The key of the order: numbers from 0 to 2**63 - 1, or arrays with one number per place.

    Returns:
        Numbers from 0 to size - 1, one per place. With the same key, different places have different numbers.

    Raises:
        ValueError: if size is out of range.
    """
    if not 1 <= size <= LARGEST_SIZE:
        raise ValueError(f"size ({size}) must be from 1 to 2**62: shuffle parts of it")
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    values = places.astype(np.uint64)
    keys = np.broadcast_to(_mixed_key(key), values.shape)
    walking = np.arange(len(values) if size > 1 else 0)
    found = np.zeros_like(values)
    while len(walking):
        values = _feistel(values, keys, half_bits)
        inside = values < np.uint64(size)
        found[walking[inside]] = values[inside]
        values, keys, walking = values[~inside], keys[~inside], walking[~inside]
    return found.astype(np.int64)


def drawn(num_values: NDArray[np.int64], *key: Key) -> NDArray[np.int64]:
    """Return a pseudo-random number from 0 to n - 1 for each n in num_values.

    Args:
        num_values: From 1 to 2**31, so that the probabilities of two numbers differ by at most 2**-32.
        key: As for `shuffled`.
    """
    mixed = np.broadcast_to(_mixed_key(key), num_values.shape)
    return ((mixed >> np.uint64(32)) * num_values.astype(np.uint64) >> np.uint64(32)).astype(np.int64)


def _feistel(values: Uint64s, keys: Uint64s, half_bits: int) -> Uint64s:
    bits, rest = np.uint64(half_bits), np.uint64(64 - half_bits)
    left, right = values >> bits, values & np.uint64((1 << half_bits) - 1)
    rounds = ROUNDS if half_bits > SMALL_HALF_BITS else SMALL_ROUNDS
    for number in range(1, 1 + rounds):
        step = np.uint64(number * int(GOLDEN) % 2**64)
        left, right = right, left ^ (_mix(keys + step + right) >> rest)
    return left << bits | right


def _mixed_key(key: tuple[Key, ...]) -> Uint64s:
    state = np.zeros(1, dtype=np.uint64)
    for part in key:
        state = _mix(state + GOLDEN ^ np.atleast_1d(np.asarray(part)).astype(np.uint64))
    return state


def _mix(values: Uint64s) -> Uint64s:
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)

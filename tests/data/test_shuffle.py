"""The order of rows: a bijection, the same everywhere, and fair."""

import numpy as np
import pytest

from samout_train.data import shuffle
from samout_train.data.shuffle import LARGEST_SIZE, RowOrder, drawn, shuffled

MOST = 2**64 - 1
RECORDED = [2, 7, 3, 1, 5, 6, 4, 0, 9, 8]


def mix(value: int) -> int:
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MOST
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MOST
    return value ^ value >> 31


def by_hand(place: int, size: int, *key: int) -> int:
    """The definition, one place at a time, in Python's own integers."""
    if size == 1:
        return 0
    mixed, bits, value = 0, 1, place
    for part in key:
        mixed = mix((mixed + 0x9E3779B97F4A7C15 & MOST) ^ part)
    while 4**bits < size:
        bits += 1
    while True:
        left, right = value >> bits, value % 2**bits
        for number in range(1, 1 + (6 if bits > 3 else 10)):
            hashed = mix(mixed + number * 0x9E3779B97F4A7C15 + right & MOST)
            left, right = right, left ^ hashed >> 64 - bits
        value = left << bits | right
        if value < size:
            return value


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 100, 1000, 10**12 + 39, 2**61 + 1, LARGEST_SIZE])
@pytest.mark.parametrize("key", [(0,), (0, 1), (2**63 - 1, 5, 7)])
def test_the_order_is_what_the_definition_says(size: int, key: tuple[int, ...]) -> None:
    some = {0, 1, 2, 3, size // 3, size // 2, size - 2, size - 1}
    places = [place for place in sorted(some) if 0 <= place < size]
    wanted = [by_hand(place, size, *key) for place in places]
    assert shuffled(np.array(places), size, *key).tolist() == wanted


def test_the_order_of_ten_things_is_the_recorded_one() -> None:
    # Printed by `by_hand` once: a run that goes on with another order would see rows twice.
    assert shuffled(np.arange(10), 10, 0, 0).tolist() == RECORDED
    assert [by_hand(place, 10, 0, 0) for place in range(10)] == RECORDED


@pytest.mark.slow
def test_every_place_has_another_one_at_every_size() -> None:
    for size in range(1, 301):
        for epoch in (0, 1):
            assert sorted(shuffled(np.arange(size), size, 3, epoch).tolist()) == list(range(size))


@pytest.mark.nightly
@pytest.mark.parametrize("size", [1_000_003, 3 * 2**40 + 1, LARGEST_SIZE - 1])
def test_a_million_places_of_a_large_range_are_all_different_and_inside(size: int) -> None:
    places = np.unique(np.random.default_rng(0).integers(0, size, 1_000_000))
    found = shuffled(places, size, 1, 2)
    assert len(np.unique(found)) == len(places) and found.min() >= 0 and found.max() < size


def test_each_part_of_the_key_counts_and_they_can_be_many() -> None:
    places = np.arange(1000)
    orders = [shuffled(places, 1000, *key) for key in ((0, 0), (0, 1), (1, 0), (0, 0, 0))]
    assert all(np.sum(one == other) < 20 for n, one in enumerate(orders) for other in orders[:n])
    epochs = np.repeat([0, 1], 1000)
    both = shuffled(np.tile(places, 2), 1000, 0, epochs)
    assert np.array_equal(both, np.concatenate(orders[:2]))


def test_a_size_that_is_none_is_refused() -> None:
    for size in (0, LARGEST_SIZE + 1):
        with pytest.raises(ValueError, match=rf"size \({size}\) must be from 1 to 2\*\*62"):
            shuffled(np.arange(1), size, 0)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 10, 16, 17, 100])
def test_every_place_and_every_pair_of_places_is_fair(size: int) -> None:
    num_seeds = 40_000 if size < 50 else 20_000
    seeds = np.repeat(np.arange(num_seeds), size)
    order = shuffled(np.tile(np.arange(size), num_seeds), size, seeds, 0).reshape(num_seeds, size)
    for place in (0, size // 2, size - 1):
        assert surprise(np.bincount(order[:, place], minlength=size)) < 5
    pairs = np.bincount(order[:, 0] * size + order[:, -1], minlength=size**2).reshape(size, size)
    assert not pairs.diagonal().any() and surprise(pairs[~np.eye(size, dtype=bool)]) < 5


def surprise(counts: np.ndarray) -> float:
    """How far chi-square is from what equal chances give, in its standard deviations."""
    wanted, free = counts.sum() / counts.size, counts.size - 1
    return float((((counts - wanted) ** 2 / wanted).sum() - free) / (2 * free) ** 0.5)


def test_drawn_numbers_are_fair_and_below_their_limit() -> None:
    limits = np.tile([1, 3, 256], 20_000)
    numbers = drawn(limits, 5, np.arange(60_000))
    assert (numbers >= 0).all() and (numbers < limits).all()
    assert surprise(np.bincount(numbers[1::3], minlength=3)) < 5
    assert surprise(np.bincount(numbers[2::3], minlength=256)) < 5


def test_rows_are_the_same_however_many_are_asked_for_and_from_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(order: RowOrder, first: int, count: int) -> list[tuple[int, int]]:
        return [(epoch, int(index)) for epoch, indices in order.pieces(first, count) for index in indices]

    monkeypatch.setattr(shuffle, "ORDERED_TOGETHER", 16)
    whole = stream(RowOrder(7, 0, shuffle=True), 0, 70)
    assert [epoch for epoch, _ in whole] == [place // 7 for place in range(70)]
    order = RowOrder(7, 0, shuffle=True)
    for first, count in ((0, 1), (1, 15), (15, 3), (60, 10), (2, 40), (41, 1)):
        assert stream(order, first, count) == whole[first : first + count]
    assert stream(RowOrder(7, 0, shuffle=False), 5, 4) == [(0, 5), (0, 6), (1, 0), (1, 1)]

"""Intervals against printed tables, a hand-worked list, and what they promise."""

import math
import random

import pytest

from samout_train.experiments.compare.intervals import Power, interval_of_mean, paired_difference, student_t

# NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2: upper critical values, 0.975.
PRINTED = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 29: 2.045, 100: 1.984}


@pytest.mark.parametrize("degrees", PRINTED)
def test_student_t_is_that_of_the_printed_table(degrees: int) -> None:
    assert student_t(0.95, degrees) == pytest.approx(PRINTED[degrees], abs=5.1e-4)
    # the same table, 0.95 and 0.995: 90 and 99 %
    assert student_t(0.90, 2) == pytest.approx(2.920, abs=5e-4) and student_t(0.99, 2) == pytest.approx(9.925, abs=5e-4)

    assert student_t(0.60, 2) == pytest.approx(1.061, abs=5e-4)  # one-sided 80 %; Fisher and Yates, table III
    assert student_t(0.60, 11) == pytest.approx(0.876, abs=5e-4)


def test_a_paired_difference_is_that_worked_out_by_hand() -> None:
    found = paired_difference([1.0, 2.0, 3.0], [0.5, 1.4, 2.6])  # 0.5, 0.6, 0.4: mean 0.5, deviation 0.1
    assert found.mean == pytest.approx(0.5) and found.num_pairs == 3
    reach = 4.302653 * 0.1 / 3**0.5
    assert found.low == pytest.approx(0.5 - reach) and found.high == pytest.approx(0.5 + reach)
    assert found.within_noise is False
    assert paired_difference([1.0, 2.0, 3.0], [0.0, 2.5, 3.3]).within_noise is True


def test_one_pair_tells_nothing_and_the_same_figures_are_within_noise() -> None:
    one = paired_difference([1.0], [2.0])
    assert (one.mean, one.low, one.high, one.within_noise) == (-1.0, None, None, None)
    assert paired_difference([1.5, 1.6], [1.5, 1.6]).within_noise is True
    assert interval_of_mean([1.0]) is None
    with pytest.raises(ValueError, match="no pair"):
        paired_difference([], [])


def test_power_pools_the_pairs_of_models_with_the_same_seeds() -> None:
    a, b, c = {1: 1.0, 2: 1.1, 3: 1.2}, {1: 1.0, 2: 1.2, 3: 1.4}, {1: 0.9, 2: 1.0, 3: 1.1}
    other = {1: 5.0, 2: 1.0}  # has two of the seeds
    # a - b: 0, -0.1, -0.2, variance 0.01; a - c: 0; b - c: 0.01. Mean 0.02 / 3
    found = Power.of([a, other, b, c])
    assert found is not None and found.num_seeds == 3 and found.spread == pytest.approx((0.02 / 3) ** 0.5)
    assert found.resolvable() == pytest.approx((4.302653 + 1.060660) * found.spread / 3**0.5)
    assert found.resolvable(12) == pytest.approx((2.200985 + 0.875530) * found.spread / 12**0.5)
    assert Power.of([a, a]) is None and Power.of([a, {4: 1.0, 5: 1.0}]) is None and Power.of([]) is None


@pytest.mark.parametrize("num_seeds", [3, 6])
def test_the_resolvable_difference_is_found_by_four_in_five_comparisons(num_seeds: int) -> None:
    draw, trials, found = random.Random(0), 1500, 0
    behind = Power(num_seeds, 0.1).resolvable()
    for _ in range(trials):
        differences = [draw.gauss(behind, 0.1) for _ in range(num_seeds)]
        found += paired_difference(differences, [0.0] * num_seeds).within_noise is False
    # three standard deviations of a share of 0.8, and 0.02 because the formula adds quantiles
    assert found / trials == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / trials) + 0.02)


@pytest.mark.slow
def test_of_pairs_that_do_not_differ_one_in_twenty_is_called_more_than_noise() -> None:
    draw, trials = random.Random(0), 4000
    called = 0
    for _ in range(trials):
        seeds = [draw.gauss(0, 1) for _ in range(3)]  # what both have in common
        pair = [[seed + draw.gauss(0, 0.1) for seed in seeds] for _ in range(2)]
        called += paired_difference(*pair).within_noise is False
    # five standard deviations of a share of 0.05
    assert called / trials == pytest.approx(0.05, abs=5 * math.sqrt(0.05 * 0.95 / trials))

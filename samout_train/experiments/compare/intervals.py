"""Whether one mean is below another, and whether that is more than noise: Student's t for paired differences."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Means of pairs that differ in one thing, such as the model, and have all else in common, such as the seed.

    Args:
        mean: Of the differences.
        low: Lower end of its 95 % interval; None where one pair alone cannot tell.
        high: Upper end.
        num_pairs: How many there are.
    """

    mean: float
    low: float | None
    high: float | None
    num_pairs: int

    @property
    def within_noise(self) -> bool | None:
        """Whether the interval has 0 in it; None where there is no interval."""
        return None if self.low is None or self.high is None else self.low <= 0 <= self.high


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The mean of `ours - theirs`, pair by pair, and its interval.

    Args:
        ours: One figure a pair.
        theirs: The other ones, in the same order.

    Raises:
        ValueError: if there is no pair.
    """
    differences = [our - their for our, their in zip(ours, theirs, strict=True)]
    if not differences:
        raise ValueError("there is no pair to compare")
    mean, count = statistics.fmean(differences), len(differences)
    if count == 1:
        return Difference(mean, None, None, 1)
    reach = interval_of_mean(differences)
    assert reach is not None
    return Difference(mean, mean - reach, mean + reach, count)


def interval_of_mean(values: Sequence[float]) -> float | None:
    """How far the 95 % interval of a mean reaches to either side; None for fewer than two values."""
    if len(values) < 2:
        return None
    return student_t(CONFIDENCE, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def student_t(confidence: float, degrees: int) -> float:
    """What a variable of Student's distribution stays within, to either side of 0, with this probability.

    Args:
        confidence: From 0 to below 1.
        degrees: Of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while _within(high, degrees) < confidence:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return (low + high) / 2


def _within(t: float, degrees: int) -> float:
    """The probability of |T| < t: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2 == 1
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    if odd:
        return 2 / math.pi * (angle + (sine * total if degrees > 1 else 0.0))
    return sine * total

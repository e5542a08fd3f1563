"""Collect the results of a comparison: each model's best rate, the scored runs, and their differences.

Whether a difference is more than noise is Student's t for paired differences: seeds that two models have in common.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from samout_train.experiments.compare.runs import Run

CONFIDENCE = 0.95


@dataclass(frozen=True)
class CandidateResult:
    """The runs of one model.

    Args:
        label: What it is called.
        runs: All of them.
    """

    label: str
    runs: Sequence[Run]

    @cached_property
    def choosing_seed(self) -> int | None:
        """The seed that rates are chosen by: of a comparison its own, else the one that most rates were tried with,
        the lowest of several; None where no run says."""
        if choosing := [run.seed for run in self.runs if run.counts is False and run.seed is not None]:
            return min(choosing)
        if any(run.counts for run in self.runs):
            return None
        rates: dict[int, set[float]] = {}
        for run in self.runs:
            if run.seed is not None and run.rate is not None:
                rates.setdefault(run.seed, set()).add(run.rate)
        return min(rates, key=lambda seed: (-len(rates[seed]), seed), default=None)

    @cached_property
    def rates(self) -> dict[float, Run]:
        """Return the runs that a rate is chosen by, by rate; without any such, one run of each rate."""
        tried = [(run.rate, run) for run in self.runs if run.rate is not None]
        if self.choosing_seed is not None:
            tried = [(rate, run) for rate, run in tried if run.seed == self.choosing_seed]
        return dict(sorted(tried, key=lambda pair: pair[0]))

    @cached_property
    def best_rate(self) -> float | None:
        """Return the rate with the lowest loss there; None where no run came to one."""
        losses = {rate: run.loss for rate, run in self.rates.items() if run.loss is not None}
        if not losses and len(self.rates) == 1:  # nothing was to be chosen: another seed may have come to its end
            return next(iter(self.rates))
        return min(losses, key=lambda rate: losses[rate], default=None)

    @cached_property
    def counted(self) -> list[Run]:
        """Return the runs that count and came to a loss, by seed.

        Of a comparison, those with the best rate on the seeds that count. Else those with the best rate, and that it
        was chosen by only if there is no other.
        """
        best = [run for run in self.runs if run.rate == self.best_rate and run.loss is not None]
        if any(run.counts is not None for run in self.runs):
            best = [run for run in best if run.counts]
        elif len(self.rates) > 1:
            best = [run for run in best if run.seed != self.choosing_seed] or best
        return sorted(best, key=lambda run: run.seed or 0)

    @property
    def screening_losses(self) -> dict[float, float | None]:
        """Return the loss of the short run with each rate; nothing where there was no screening."""
        return {rate: run.loss for rate, run in self.rates.items() if run.screening}

    @property
    def chosen_and_counted(self) -> bool:
        """Return whether the run that the rate was chosen by counts itself, which flatters it."""
        return len(self.rates) > 1 and any(run.seed == self.choosing_seed for run in self.counted)

    @property
    def edge(self) -> str | None:
        """`largest` or `smallest`, where the best of several rates is that one; else None."""
        if len(self.rates) < 2 or self.best_rate is None:
            return None
        return {max(self.rates): "largest", min(self.rates): "smallest"}.get(self.best_rate)

    @property
    def losses(self) -> dict[int, float]:
        """By seed, of the runs that count."""
        return {run.seed: run.loss for run in self.counted if run.loss is not None and run.seed is not None}

    @property
    def mean(self) -> float | None:
        """Of these losses."""
        if not self.losses:
            return None
        return statistics.fmean(self.losses.values())

    @property
    def spread(self) -> float | None:
        """Return their standard deviation, as that of a sample; None for fewer than two."""
        if len(self.losses) < 2:
            return None
        return statistics.stdev(self.losses.values())

    def figure(self, key: str) -> float | None:
        """Return the mean of a figure of `summary.json` over the runs that count; None where one has none."""
        values = [run.summary.get(key) for run in self.counted if run.summary is not None]
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        if not numbers or len(numbers) < len(values):
            return None
        return statistics.fmean(numbers)

    @property
    def loss_by_length(self) -> list[tuple[int, float]]:
        """Return lengths and mean losses of the same text in windows of it, where all runs that count have it."""
        found = [(run.summary or {}).get("lengths", {}).get("loss_nats", {}) for run in self.counted]
        lengths = [length for length, nats in (found[0] if found else {}).items() if nats is not None]
        there = [length for length in lengths if all(of.get(length) is not None for of in found)]
        return sorted((int(length), statistics.fmean(of[length] for of in found)) for length in there)

    @property
    def accuracies(self) -> dict[str, float]:
        """By test of a task, with chance in brackets: the mean share of right answers; nothing where it is no task."""
        summaries = [run.summary or {} for run in self.counted]
        found: dict[str, float] = {}
        if not summaries:
            return found
        for name in summaries[0].get("accuracy", {}):
            if name != "validation" and all(name in summary.get("accuracy", {}) for summary in summaries):
                shares = [summary["accuracy"][name]["share"] for summary in summaries]
                found[f"{name.replace('_', ' ')} ({summaries[0]['chance']:.2g})"] = statistics.fmean(shares)
        return found

    @property
    def missing(self) -> list[Run]:
        """Return the runs that did not come to their end."""
        return [run for run in self.runs if run.outcome.state != "done"]


@dataclass(frozen=True)
class Comparison:
    """Models on the same data.

    Args:
        data: Its name.
        results: In the order of their mean loss on the seeds that all have, or on their own where there are none;
            those without one last.
    """

    data: str
    results: Sequence[CandidateResult]

    @classmethod
    def of(cls, data: str, runs: Sequence[Run]) -> "Comparison":
        """From the runs on this data."""
        by_label: dict[str, list[Run]] = {}
        for run in runs:
            by_label.setdefault(run.label, []).append(run)
        results = [CandidateResult(label, of_label) for label, of_label in by_label.items()]
        seeds = _common_seeds(results)
        return cls(data, sorted(results, key=lambda one: _mean_on(one, seeds)))

    @property
    def runs(self) -> list[Run]:
        """Of all."""
        return [run for one in self.results for run in one.runs]

    @property
    def screening_losses(self) -> dict[str, dict[float, float | None]]:
        """Return the losses of the short runs by label and rate; nothing where there was no screening."""
        return {one.label: one.screening_losses for one in self.results if one.screening_losses}

    @property
    def ranked(self) -> list[CandidateResult]:
        """Return those that have a loss, the best one first."""
        return [one for one in self.results if one.mean is not None]


def comparisons_of(runs: Sequence[Run]) -> list[Comparison]:
    """Return a comparison for each data that there are runs on, by name."""
    return [
        Comparison.of(data, [run for run in runs if run.data == data]) for data in sorted({run.data for run in runs})
    ]


# Their earlier names.
Contestant, Contest, contests_of = CandidateResult, Comparison, comparisons_of


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
        """Return whether the interval has 0 in it; None where there is no interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= 0 <= self.high


def difference(one: CandidateResult, other: CandidateResult) -> Difference | None:
    """Return the difference of their losses, `one - other`, on the seeds that both have; None where there is none."""
    seeds = [seed for seed in one.losses if seed in other.losses]
    if not seeds:
        return None
    return paired_difference([one.losses[seed] for seed in seeds], [other.losses[seed] for seed in seeds])


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Return the mean of `ours - theirs`, pair by pair, and its interval.

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
    """Return how far the 95 % interval of a mean reaches to either side; None for fewer than two values."""
    if len(values) < 2:
        return None
    return student_t(CONFIDENCE, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def student_t(confidence: float, degrees: int) -> float:
    """Return what a variable of Student's distribution stays within, to either side of 0, with this probability.

    Args:
        confidence: From 0 to below 1.
        degrees: Of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while _within(high, degrees) < confidence:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if _within(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _common_seeds(results: Sequence[CandidateResult]) -> set[int]:
    seeds = [set(one.losses) for one in results if one.losses]
    if not seeds:
        return set()
    return set.intersection(*seeds)


def _mean_on(one: CandidateResult, seeds: set[int]) -> float:
    losses = [loss for seed, loss in one.losses.items() if seed in seeds] or list(one.losses.values())
    if not losses:
        return math.inf
    return statistics.fmean(losses)


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

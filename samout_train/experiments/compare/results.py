"""Collect the results of a comparison: each model's best rate, the scored runs, and their differences.

Whether a difference is more than noise is Student's t for paired differences: seeds that two models have in common.
`Power` is the smallest difference that is found so with some number of seeds.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations
from typing import Any

from samout_train.experiments.compare.runs import Run
from samout_train.experiments.jobs import State

CONFIDENCE = 0.95
POWER = 0.8


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
        """Return the seed that learning rates are chosen on; None where the runs do not show one.

        A comparison records it. Without a record it is the seed that most rates were tried with, the lowest of several.
        """
        recorded = []
        rates: dict[int, set[float]] = {}
        for run in self.runs:
            if run.seed is None:
                continue
            if run.counts is False:
                recorded.append(run.seed)
            if run.rate is not None:
                rates.setdefault(run.seed, set()).add(run.rate)
        if recorded:
            return min(recorded)
        if any(run.counts for run in self.runs):
            return None
        return min(rates, key=lambda seed: (-len(rates[seed]), seed), default=None)

    @cached_property
    def rates(self) -> dict[float, Run]:
        """Return the runs that a rate is chosen by, by rate; without a seed for choosing, one run of each rate."""
        by_rate: dict[float, Run] = {}
        for run in self.runs:
            is_tried = self.choosing_seed is None or run.seed == self.choosing_seed
            if run.rate is not None and is_tried and run.tries is None:
                by_rate[run.rate] = run
        return dict(sorted(by_rate.items()))

    @cached_property
    def best_rate(self) -> float | None:
        """Return the rate with the lowest loss; None if no run has a loss.

        A single rate needs no loss on the choosing seed: it is the best one, because another seed may have finished.
        """
        losses = {}
        for rate, run in self.rates.items():
            if run.loss is not None:
                losses[rate] = run.loss
        if not losses and len(self.rates) == 1:
            return next(iter(self.rates))
        return min(losses, key=losses.__getitem__, default=None)

    @cached_property
    def best_settings(self) -> Mapping[str, Any]:
        """Return what was chosen beside the rate, by dotted key: that of the run with the lowest loss."""
        tried: list[Run] = []
        for run in self.runs:
            if run.rate == self.best_rate and run.counts is False and run.loss is not None:
                tried.append(run)
        tried.sort(key=lambda run: run.tries is not None)  # of equal losses that of the rate, then the first one tried
        if tried:
            return min(tried, key=lambda run: run.loss or 0.0).settings
        return next((run.settings for run in self.runs if run.counts), {})

    @cached_property
    def counted(self) -> list[Run]:
        """Return the runs that are scored and have a loss, by seed.

        In a comparison these are the runs with the best rate on the scored seeds. Elsewhere they are the runs with the
        best rate, without the run that chose it unless there is no other.
        """
        is_comparison = any(run.counts is not None for run in self.runs)
        scored, chose = [], []
        for run in self.runs:
            if run.rate != self.best_rate or run.loss is None:
                continue
            if is_comparison:
                if run.counts and run.settings == self.best_settings:
                    scored.append(run)
            elif len(self.rates) > 1 and run.seed == self.choosing_seed:
                chose.append(run)
            else:
                scored.append(run)
        return sorted(scored or chose, key=lambda run: run.seed or 0)

    @property
    def screening_losses(self) -> dict[float, float | None]:
        """Return the loss of the short run with each rate; empty without a screening."""
        losses: dict[float, float | None] = {}
        for rate, run in self.rates.items():
            if run.screening:
                losses[rate] = run.loss
        for run in self.runs:  # what was chosen at the best rate may have a lower loss than the rate alone
            if run.tries is not None and run.screening and run.loss is not None and run.rate in losses:
                losses[run.rate] = min(run.loss, losses[run.rate] or math.inf)
        return losses

    @property
    def screening_states(self) -> dict[float, State]:
        """Return the state of the short run with each rate; empty without a screening."""
        return {rate: run.outcome.state for rate, run in self.rates.items() if run.screening}

    @property
    def chosen_and_counted(self) -> bool:
        """Return whether the run that chose the rate is scored itself, which biases the result."""
        return len(self.rates) > 1 and any(run.seed == self.choosing_seed for run in self.counted)

    @property
    def edge(self) -> str | None:
        """Return `largest` or `smallest` where the best of several rates is that one, else None."""
        if len(self.rates) < 2 or self.best_rate is None:
            return None
        return {max(self.rates): "largest", min(self.rates): "smallest"}.get(self.best_rate)

    @property
    def leads(self) -> bool:
        """Return whether the model is a leader: one that was scored on further seeds, on which nothing was chosen."""
        return any(run.leader for run in self.counted)

    @property
    def losses(self) -> dict[int, float]:
        """Return the losses of the scored runs by seed, in nats; of a leader those on its further seeds alone."""
        return self._losses(self.leads)

    @property
    def first_losses(self) -> dict[int, float]:
        """Return the losses by seed on the seeds that all models are scored on, by which the leaders were chosen."""
        return self._losses(of_leader=False)

    def _losses(self, of_leader: bool) -> dict[int, float]:
        losses = {}
        for run in self.counted:
            if run.loss is not None and run.seed is not None and run.leader == of_leader:
                losses[run.seed] = run.loss
        return losses

    @property
    def mean(self) -> float | None:
        """Return the mean of these losses; None without one."""
        if not self.losses:
            return None
        return statistics.fmean(self.losses.values())

    @property
    def spread(self) -> float | None:
        """Return their sample standard deviation; None for fewer than two."""
        if len(self.losses) < 2:
            return None
        return statistics.stdev(self.losses.values())

    def figure(self, key: str) -> float | None:
        """Return the mean of a figure of `summary.json` over the scored runs; None where one of them lacks it."""
        numbers = []
        for run in self.counted:
            if run.summary is None:
                continue
            value = run.summary.get(key)
            if not isinstance(value, int | float):
                return None
            numbers.append(float(value))
        if not numbers:
            return None
        return statistics.fmean(numbers)

    @property
    def loss_by_length(self) -> list[tuple[int, float]]:
        """Return window lengths in tokens and the mean loss of the same text in such windows.

        Lengths that one of the scored runs lacks are left out.
        """
        by_length: dict[str, list[float]] = {}
        for run in self.counted:
            summary = run.summary or {}
            for length, nats in summary.get("lengths", {}).get("loss_nats", {}).items():
                if nats is not None:
                    by_length.setdefault(length, []).append(nats)
        points = []
        for length, losses in by_length.items():
            if len(losses) == len(self.counted):
                points.append((int(length), statistics.fmean(losses)))
        return sorted(points)

    @property
    def accuracies(self) -> dict[str, float]:
        """Return the mean share of right answers by test of a task, with chance in brackets; empty without a task."""
        found: dict[str, float] = {}
        summaries = [run.summary or {} for run in self.counted]
        if not summaries:
            return found
        first = summaries[0]
        for name in first.get("accuracy", {}):
            if name == "validation":
                continue
            shares = []
            for summary in summaries:
                if name in summary.get("accuracy", {}):
                    shares.append(summary["accuracy"][name]["share"])
            if len(shares) == len(summaries):
                test = f"{name.replace('_', ' ')} ({first['chance']:.2g})"
                found[test] = statistics.fmean(shares)
        return found

    @property
    def accuracy(self) -> float | None:
        """Return the mean share of right answers in the first test of a task; None without a task."""
        return next(iter(self.accuracies.values()), None)

    @property
    def leak(self) -> Mapping[str, Any] | None:
        """Return where the model sees the tokens that it has to predict, as its runs recorded it; None for none."""
        for run in self.runs:
            found = (run.summary or {}).get("leak")
            if isinstance(found, Mapping):
                return found
        return None

    @property
    def missing(self) -> list[Run]:
        """Return the runs that are not done."""
        return [run for run in self.runs if run.outcome.state != "done"]


@dataclass(frozen=True)
class Comparison:
    """Models on the same data.

    Args:
        data: Its name.
        results: By mean loss, the lowest first: on the seeds that all models have, or on a model's own seeds where
            there are none. Leaders come first, by their further seeds; models without a loss come late, and last those
            that are not causal.
        labels: Of the models on any data that are shown together, sorted. The colour of a model follows from its place
            here, so that it is the same on all data; empty to take the labels of `results`.
    """

    data: str
    results: Sequence[CandidateResult]
    labels: Sequence[str] = ()

    @classmethod
    def of(cls, data: str, runs: Sequence[Run], labels: Sequence[str] = ()) -> "Comparison":
        """Return the comparison of the runs on this data."""
        by_label: dict[str, list[Run]] = {}
        for run in runs:
            by_label.setdefault(run.label, []).append(run)
        results = []
        for label, of_label in by_label.items():
            results.append(CandidateResult(label, of_label))
        leaders = [one for one in results if one.leads]
        others = [one for one in results if not one.leads]
        seeds = _common_seeds(leaders) | _common_seeds(others)
        results.sort(key=lambda one: (one.leak is not None, not one.leads, _mean_on(one, seeds)))
        return cls(data, results, labels or sorted(by_label))

    @property
    def runs(self) -> list[Run]:
        """Return the runs of all models."""
        runs: list[Run] = []
        for one in self.results:
            runs += one.runs
        return runs

    @property
    def screening_losses(self) -> dict[str, dict[float, float | None]]:
        """Return the losses of the short runs by label and rate; empty without a screening."""
        losses = {}
        for one in self.results:
            if one.screening_losses:
                losses[one.label] = one.screening_losses
        return losses

    @property
    def screening_states(self) -> dict[str, dict[float, State]]:
        """Return the states of the short runs by label and rate; empty without a screening."""
        return {one.label: one.screening_states for one in self.results if one.screening_states}

    @property
    def ranked(self) -> list[CandidateResult]:
        """Return the models that have a loss and are causal, the best one first."""
        return [one for one in self.results if one.mean is not None and one.leak is None]

    @property
    def fronts(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Return the models on the Pareto fronts over bytes of state: of the loss, and of a task's accuracy.

        Of each model by its label the bytes and the figure, the smallest state first. There is no front of one model.
        """
        losses, accuracies = {}, {}
        for one in self.ranked:
            size = one.figure("state_bytes")
            if size is not None and one.mean is not None:
                losses[one.label] = (size, one.mean)
            if size is not None and one.accuracy is not None:
                accuracies[one.label] = (size, one.accuracy)
        fronts = {}
        for name, places, sign in (("loss", losses, 1), ("accuracy", accuracies, -1)):
            if len(places) > 1:
                on_front = front({label: (size, sign * figure) for label, (size, figure) in places.items()})
                fronts[name] = {label: places[label] for label in on_front}
        return fronts

    @property
    def power(self) -> "Power | None":
        """Return what the seeds that all models are scored on can resolve; None without two models and two seeds."""
        return Power.of(one.first_losses for one in self.ranked)

    @property
    def power_of_leaders(self) -> "Power | None":
        """Return what the further seeds of the leaders can resolve; None without two leaders and two such seeds."""
        return Power.of(one.losses for one in self.ranked if one.leads)

    @property
    def not_causal(self) -> list[CandidateResult]:
        """Return the models that see the tokens that they have to predict."""
        return [one for one in self.results if one.leak is not None]


def comparisons_of(runs: Sequence[Run]) -> list[Comparison]:
    """Return one comparison for each data source of the runs, sorted by name."""
    by_data: dict[str, list[Run]] = {}
    for run in runs:
        by_data.setdefault(run.data, []).append(run)
    labels = sorted({run.label for run in runs})
    comparisons = []
    for data in sorted(by_data):
        comparisons.append(Comparison.of(data, by_data[data], labels))
    return comparisons


# Their earlier names.
Contestant, Contest, contests_of = CandidateResult, Comparison, comparisons_of


def front(places: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return what is on the Pareto front: no other one is at least as low in both figures and lower in one.

    Args:
        places: By name, two figures of which the lower is better.

    Returns:
        The names, by the first figure.
    """
    found: list[str] = []
    for name in sorted(places, key=places.__getitem__):
        if not found or places[name][1] < places[found[-1]][1] or places[name] == places[found[-1]]:
            found.append(name)
    return found


@dataclass(frozen=True)
class Difference:
    """The mean difference of pairs that differ in one thing, such as the model, and share the rest, such as the seed.

    Args:
        mean: Of the differences.
        low: Lower end of its 95 % interval; None for a single pair.
        high: Upper end.
        num_pairs: How many pairs there are.
    """

    mean: float
    low: float | None
    high: float | None
    num_pairs: int

    @property
    def within_noise(self) -> bool | None:
        """Return whether the interval contains 0; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Power:
    """How small a difference between two models can be and still be told from noise.

    Args:
        num_seeds: That the models have in common, at least 2.
        spread: Standard deviation of the differences seed by seed, pooled over all pairs of models, in nats.
    """

    num_seeds: int
    spread: float

    @classmethod
    def of(cls, losses_of_models: Iterable[Mapping[int, float]]) -> "Power | None":
        """Return the power of models with these losses by seed.

        Only pairs of models with the same seeds are pooled: those with the seeds that most models have.

        Returns:
            None where no two models have the same two seeds or more, and where all differences are alike.
        """
        by_seeds: dict[tuple[int, ...], list[list[float]]] = {}
        for losses in losses_of_models:
            if len(losses) > 1:
                seeds = tuple(sorted(losses))
                by_seeds.setdefault(seeds, []).append([losses[seed] for seed in seeds])
        alike = max(by_seeds.values(), key=len, default=[])
        variances = []
        for ours, theirs in combinations(alike, 2):
            variances.append(statistics.variance(our - their for our, their in zip(ours, theirs, strict=True)))
        if not any(variances):
            return None
        return cls(len(alike[0]), math.sqrt(statistics.fmean(variances)))

    def resolvable(self, num_seeds: int | None = None) -> float:
        """Return the true difference that 80 % of comparisons with these seeds find to be more than noise, in nats.

        NIST/SEMATECH e-Handbook of Statistical Methods, 7.2.2.2, sample size of a two-sided t test with an unknown
        standard deviation, solved for the difference. Simulated, 72 % of comparisons with 2 seeds find it, 78 % with
        3, and 81 % with 5 and with 12.

        Args:
            num_seeds: At least 2; None for those that there are.
        """
        count = num_seeds or self.num_seeds
        one_sided = 2 * POWER - 1  # the bound that a share of POWER stays below is that of this share on both sides
        quantiles = student_t(CONFIDENCE, count - 1) + student_t(one_sided, count - 1)
        return quantiles * self.spread / math.sqrt(count)


def difference(one: CandidateResult, other: CandidateResult) -> Difference | None:
    """Return the difference of their losses, `one - other`, on the seeds that both have; None without such a seed.

    Two leaders are compared on their further seeds alone, because they were chosen on the others.
    """
    ours_by_seed, theirs_by_seed = one.first_losses, other.first_losses
    if one.leads and other.leads:
        ours_by_seed, theirs_by_seed = one.losses, other.losses
    ours, theirs = [], []
    for seed, loss in ours_by_seed.items():
        if seed in theirs_by_seed:
            ours.append(loss)
            theirs.append(theirs_by_seed[seed])
    if not ours:
        return None
    return paired_difference(ours, theirs)


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Return the mean of `ours - theirs`, pair by pair, and its interval.

    Args:
        ours: One value a pair.
        theirs: The other value of each pair, in the same order.

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


@cache
def student_t(confidence: float, degrees: int) -> float:
    """Return the bound that the absolute value of a Student's t variable stays below with this probability.

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
    common: set[int] | None = None
    for one in results:
        if one.losses and common is None:
            common = set(one.losses)
        elif one.losses and common is not None:
            common &= set(one.losses)
    return common or set()


def _mean_on(one: CandidateResult, seeds: set[int]) -> float:
    losses = [loss for seed, loss in one.losses.items() if seed in seeds]
    if not losses:
        losses = list(one.losses.values())
    if not losses:
        return math.inf
    return statistics.fmean(losses)


def _within(t: float, degrees: int) -> float:
    """Return the probability of |T| < t: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3, 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    if degrees == 1:
        return 2 / math.pi * angle
    if degrees % 2 == 1:
        term, first = cosine, 3
    else:
        term, first = 1.0, 2
    total = term
    for k in range(first, degrees - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    if degrees % 2 == 1:
        return 2 / math.pi * (angle + sine * total)
    return sine * total

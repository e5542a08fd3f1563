"""What the runs of a comparison came to: each model's best rate, and the runs that count."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from samout_train.experiments.compare.intervals import Difference, paired_difference
from samout_train.experiments.compare.runs import Run


@dataclass(frozen=True)
class Contestant:
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
        return min(rates, key=lambda seed: (-len(rates[seed]), seed)) if rates else None

    @cached_property
    def rates(self) -> dict[float, Run]:
        """The runs that a rate is chosen by, by rate; without any such, one run of each rate."""
        tried = [(run.rate, run) for run in self.runs if run.rate is not None]
        if self.choosing_seed is not None:
            tried = [(rate, run) for rate, run in tried if run.seed == self.choosing_seed]
        return dict(sorted(tried, key=lambda pair: pair[0]))

    @cached_property
    def best_rate(self) -> float | None:
        """The rate with the lowest loss there; None where no run came to one."""
        losses = {rate: run.loss for rate, run in self.rates.items() if run.loss is not None}
        if not losses and len(self.rates) == 1:  # nothing was to be chosen: another seed may have come to its end
            return next(iter(self.rates))
        return min(losses, key=lambda rate: losses[rate]) if losses else None

    @cached_property
    def counted(self) -> list[Run]:
        """The runs that count and came to a loss, by seed.

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
    def chosen_and_counted(self) -> bool:
        """Whether the run that the rate was chosen by counts itself, which flatters it."""
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
        return statistics.fmean(self.losses.values()) if self.losses else None

    @property
    def spread(self) -> float | None:
        """Their standard deviation, as that of a sample; None for fewer than two."""
        return statistics.stdev(self.losses.values()) if len(self.losses) > 1 else None

    def figure(self, key: str) -> float | None:
        """The mean of a figure of `summary.json` over the runs that count; None where one has none."""
        values = [run.summary.get(key) for run in self.counted if run.summary is not None]
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        return statistics.fmean(numbers) if numbers and len(numbers) == len(values) else None

    @property
    def loss_by_length(self) -> list[tuple[int, float]]:
        """Length and mean loss of the same text in windows of it, where all runs that count have it."""
        found = [(run.summary or {}).get("lengths", {}).get("loss_nats", {}) for run in self.counted]
        lengths = [length for length, nats in (found[0] if found else {}).items() if nats is not None]
        there = [length for length in lengths if all(of.get(length) is not None for of in found)]
        return sorted((int(length), statistics.fmean(of[length] for of in found)) for length in there)

    @property
    def accuracies(self) -> dict[str, float]:
        """By test of a task, with chance in brackets: the mean share of right answers; nothing where it is no task."""
        summaries = [run.summary or {} for run in self.counted]
        tests = summaries[0].get("accuracy", {}) if summaries else {}
        return {
            f"{name.replace('_', ' ')} ({summaries[0]['chance']:.2g})": statistics.fmean(
                summary["accuracy"][name]["share"] for summary in summaries
            )
            for name in tests
            if name != "validation" and all(name in summary.get("accuracy", {}) for summary in summaries)
        }

    @property
    def missing(self) -> list[Run]:
        """Runs that did not come to their end."""
        return [run for run in self.runs if run.outcome.state != "done"]


@dataclass(frozen=True)
class Contest:
    """Models on the same data.

    Args:
        data: Its name.
        contestants: In the order of their mean loss on the seeds that all have, or on their own where there are none;
            those without one last.
    """

    data: str
    contestants: Sequence[Contestant]

    @classmethod
    def of(cls, data: str, runs: Sequence[Run]) -> "Contest":
        """From the runs on this data."""
        by_label: dict[str, list[Run]] = {}
        for run in runs:
            by_label.setdefault(run.label, []).append(run)
        contestants = [Contestant(label, of_label) for label, of_label in by_label.items()]
        seeds = _common_seeds(contestants)
        return cls(data, sorted(contestants, key=lambda one: _mean_on(one, seeds)))

    @property
    def runs(self) -> list[Run]:
        """Of all."""
        return [run for one in self.contestants for run in one.runs]

    @property
    def ranked(self) -> list[Contestant]:
        """Those that have a loss, the best one first."""
        return [one for one in self.contestants if one.mean is not None]


def _common_seeds(contestants: Sequence[Contestant]) -> set[int]:
    seeds = [set(one.losses) for one in contestants if one.losses]
    return set.intersection(*seeds) if seeds else set()


def _mean_on(one: Contestant, seeds: set[int]) -> float:
    losses = [loss for seed, loss in one.losses.items() if seed in seeds] or list(one.losses.values())
    return statistics.fmean(losses) if losses else math.inf


def difference(one: Contestant, other: Contestant) -> Difference | None:
    """Of their losses, `one - other`, on the seeds that both have; None where there is none."""
    seeds = [seed for seed in one.losses if seed in other.losses]
    if not seeds:
        return None
    return paired_difference([one.losses[seed] for seed in seeds], [other.losses[seed] for seed in seeds])


def contests_of(runs: Sequence[Run]) -> list[Contest]:
    """A contest for each data that there are runs on, by name."""
    return [Contest.of(data, [run for run in runs if run.data == data]) for data in sorted({run.data for run in runs})]

"""Collect the results of a comparison: each model's best rate, the scored runs, and their differences."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from samout_train.experiments.compare.intervals import Difference, Power, paired_difference
from samout_train.experiments.compare.matching import Budget
from samout_train.experiments.compare.runs import Run
from samout_train.experiments.compare.screening import NOT_OVER
from samout_train.experiments.jobs import State

Places = dict[str, tuple[float, float]]  # bytes of state and a figure, by label


@dataclass(frozen=True)
class CandidateResult:
    """The runs of one model.

    Args:
        label: Label of the model.
        runs: All its runs.
    """

    label: str
    runs: Sequence[Run]

    @property
    def _choosing(self) -> list[Run]:
        """Return the runs by which rates and settings are chosen.

        Where one comparison chose by short runs and another by full ones that have a loss, these are the full ones.
        """
        choosing = [run for run in self.runs if run.counts is False]
        full = [run for run in choosing if not run.screening]
        if any(run.loss is not None for run in full):
            return full
        return [run for run in choosing if run.screening] or choosing

    @cached_property
    def choosing_seed(self) -> int | None:
        """Return the seed on which learning rates are chosen; None if the runs do not show it.

        A comparison records it. Without a record, it is the seed on which the most rates were tried, or the lowest such
        seed.
        """
        recorded = [run.seed for run in self._choosing if run.seed is not None]
        if recorded:
            return min(recorded)
        rates: dict[int, set[float]] = {}
        for run in self.runs:
            if run.rate is not None and run.seed is not None:
                rates.setdefault(run.seed, set()).add(run.rate)
        if any(run.counts for run in self.runs):
            return None
        return min(rates, key=lambda seed: (-len(rates[seed]), seed), default=None)

    @cached_property
    def rates(self) -> dict[float, Run]:
        """Return by rate the runs that the best rate is chosen from; without a choosing seed, one run of each rate.

        Those of a comparison are recorded; other runs of its models choose nothing.
        """
        by_rate: dict[float, Run] = {}
        recorded = [run for run in self.runs if run.counts is not None]
        for run in self._choosing or recorded or self.runs:
            is_tried = self.choosing_seed is None or run.seed == self.choosing_seed
            if run.rate is not None and is_tried and run.tries is None:
                by_rate[run.rate] = run
        return dict(sorted(by_rate.items()))

    @cached_property
    def best_rate(self) -> float | None:
        """Return the rate with the lowest loss; None if no run has a loss.

        A single rate is the best one even without a loss on the choosing seed, since another seed may have finished.
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
        """Return the chosen settings other than the rate, by dotted key: those of the run with the lowest loss."""
        tried: list[Run] = []
        for run in self._choosing:
            if run.rate == self.best_rate and run.loss is not None:
                tried.append(run)
        tried.sort(key=lambda run: run.tries is not None)  # ties go to the run that tries the rate, then the first
        if tried:
            return min(tried, key=lambda run: run.loss or 0.0).settings
        return next((run.settings for run in self.runs if run.counts), {})

    @property
    def outside(self) -> list[Run]:
        """Return the runs that belong to no comparison while others do; they are neither chosen from nor scored."""
        without = [run for run in self.runs if run.counts is None]
        return without if len(without) < len(self.runs) else []

    @cached_property
    def counted(self) -> list[Run]:
        """Return the scored runs that have a loss, sorted by seed.

        In a comparison, these are the runs with the best rate on the scored seeds. Elsewhere, they are the runs with
        the best rate; the run by which it was chosen counts only if there is no other.
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
        for run in self.runs:  # a run that tries another setting at the best rate may have a lower loss
            if run.tries is not None and run.screening and run.loss is not None and run.rate in losses:
                losses[run.rate] = min(run.loss, losses[run.rate] or math.inf)
        return losses

    @property
    def screening_states(self) -> dict[float, State]:
        """Return the state of the short runs with each rate, of several the one that is not over.

        Empty without a screening.
        """
        states = {rate: run.outcome.state for rate, run in self.rates.items() if run.screening}
        for run in self.runs:  # a run that tries another setting decides, too
            if run.tries is not None and run.screening and run.rate in states and run.outcome.state in NOT_OVER:
                states[run.rate] = run.outcome.state
        return states

    @property
    def chosen_and_counted(self) -> bool:
        """Return whether the run by which the rate was chosen is also scored, which biases the result."""
        return len(self.rates) > 1 and any(run.seed == self.choosing_seed for run in self.counted)

    @property
    def edge(self) -> str | None:
        """Return `largest` or `smallest` if the best of several rates is that one; else None."""
        if len(self.rates) < 2 or self.best_rate is None:
            return None
        return {max(self.rates): "largest", min(self.rates): "smallest"}.get(self.best_rate)

    @property
    def settings_at_edge(self) -> dict[str, str]:
        """Return which chosen settings are the `largest` or `smallest` number tried, except 0, where ranges end."""
        found = {}
        for key, value in self.best_settings.items():
            tried = {run.settings[key] for run in self.runs if key in run.settings}
            if len(tried) < 2 or not value or any(isinstance(one, bool | str | None) for one in tried):
                continue
            if value in (min(tried), max(tried)):
                found[key] = "largest" if value == max(tried) else "smallest"
        return found

    @property
    def leads(self) -> bool:
        """Return whether the model is a leader, which is scored on further seeds on which nothing was chosen."""
        return any(run.leader for run in self.counted)

    @property
    def losses(self) -> dict[int, float]:
        """Return the losses of the scored runs by seed, in nats; for a leader, only those on its further seeds."""
        return self._losses(self.leads)

    @property
    def first_losses(self) -> dict[int, float]:
        """Return the losses, by seed, on the seeds on which all models are scored; leaders were chosen by these."""
        return self._losses(of_leader=False)

    def _losses(self, of_leader: bool) -> dict[int, float]:
        losses = {}
        for run in self.counted:
            if run.loss is not None and run.seed is not None and run.leader == of_leader:
                losses[run.seed] = run.loss
        return losses

    @property
    def mean(self) -> float | None:
        """Return the mean of `losses`; None without losses."""
        if not self.losses:
            return None
        return statistics.fmean(self.losses.values())

    @property
    def spread(self) -> float | None:
        """Return the sample standard deviation of `losses`; None for fewer than two."""
        if len(self.losses) < 2:
            return None
        return statistics.stdev(self.losses.values())

    def figure(self, key: str) -> float | None:
        """Return the mean of a figure of `summary.json` over the scored runs; None if a summary lacks it."""
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
    def shares(self) -> dict[str, dict[int, float]]:
        """Return the share of right answers by test of a task, with chance in brackets, and by scored seed."""
        found: dict[str, dict[int, float]] = {}
        summaries = {run.seed or 0: run.summary or {} for run in self.counted}
        first = next(iter(summaries.values()), {})
        for name in first.get("accuracy", {}):
            shares = {}
            for seed, summary in summaries.items():
                if name in summary.get("accuracy", {}):
                    shares[seed] = summary["accuracy"][name]["share"]
            if name != "validation" and len(shares) == len(summaries):
                found[f"{name.replace('_', ' ')} ({first['chance']:.2g})"] = shares
        return found

    @property
    def accuracies(self) -> dict[str, float]:
        """Return the mean share of right answers by test of a task, with chance in brackets; empty without a task."""
        return {test: statistics.fmean(shares.values()) for test, shares in self.shares.items()}

    @property
    def leak(self) -> Mapping[str, Any] | None:
        """Return where the model sees the tokens that it has to predict; None if its runs recorded no leak."""
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
        data: Name of the data.
        results: Sorted by mean loss, the lowest first: on the seeds that all models have or, without such seeds, on a
            model's own. Leaders come first, sorted by their further seeds. Models without a loss come late, and models
            that are not causal last.
        labels: Sorted labels of all models that are shown together, on any data. They decide the colour of each model,
            which is therefore the same on all data. Empty to take the labels of `results`.
        tasks: For a text: the comparisons of the same models on tasks.
        sizes: For a text: the comparisons of the same models on it at other sizes.
    """

    data: str
    results: Sequence[CandidateResult]
    labels: Sequence[str] = ()
    tasks: Sequence["Comparison"] = ()
    sizes: Sequence["Comparison"] = ()

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
    def is_task(self) -> bool:
        """Return whether its models are trained on a task: one that goes with a text, or data with right answers."""
        return any(run.task for run in self.runs) or any(one.shares for one in self.results)

    @property
    def budget(self) -> str | None:
        """Return the budget of a further size; None at the comparison's own size."""
        return next((run.budget for run in self.runs), None)

    @property
    def name(self) -> str:
        """Return the name of the data, with the budget of a further size."""
        if self.budget is None:
            return self.data
        return f"{self.data} at {Budget.of(self.budget)}"

    @property
    def beside(self) -> list["Comparison"]:
        """Return the comparisons that go with it: at other sizes, and on tasks."""
        return [*self.sizes, *self.tasks]

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
    def by_state(self) -> dict[str, Places]:
        """Return bytes of state and mean loss by label; for a task, under `accuracy`, also the share of right answers.

        The means are over `front_seeds`. Without such seeds, each model has the mean over its own.
        """
        found: dict[str, Places] = {"loss": {}, "accuracy": {}}
        for name, by_label in self._figures_by_seed.items():
            for label, (size, figures) in by_label.items():
                shared = [figures[seed] for seed in self.front_seeds[name]]
                found[name][label] = (size, statistics.fmean(shared or figures.values()))
        return found

    @property
    def front_seeds(self) -> dict[str, list[int]]:
        """Return the seeds that all models of a front have, for `loss` and `accuracy`."""
        found = {}
        for name, by_label in self._figures_by_seed.items():
            seeds = [set(figures) for _, figures in by_label.values()]
            found[name] = sorted(set.intersection(*seeds)) if seeds else []
        return found

    @property
    def _figures_by_seed(self) -> dict[str, dict[str, tuple[float, dict[int, float]]]]:
        """Return bytes of state with the figures of each scored seed, by label, for `loss` and `accuracy`."""
        losses, accuracies = {}, {}
        for one in self.ranked:
            size = one.figure("state_bytes")
            if size is None:
                continue
            losses[one.label] = (size, one.first_losses | one.losses)
            if one.shares:
                accuracies[one.label] = (size, next(iter(one.shares.values())))
        return {"loss": losses, "accuracy": accuracies}

    @property
    def fronts(self) -> dict[str, Places]:
        """Return the models on the Pareto fronts over bytes of state: for the loss, and for a task's accuracy.

        Each front maps a model's label to its bytes and figure, the smallest state first. Neither one model nor models
        without a seed in common have a front.
        """
        fronts = {}
        for name, sign in (("loss", 1), ("accuracy", -1)):
            places = self.by_state[name]
            if len(places) > 1 and self.front_seeds[name]:
                on_front = front({label: (size, sign * figure) for label, (size, figure) in places.items()})
                fronts[name] = {label: places[label] for label in on_front}
        return fronts

    @property
    def power(self) -> "Power | None":
        """Return what the seeds on which all models are scored resolve; None without two models and two seeds."""
        return Power.of(one.first_losses for one in self.ranked)

    @property
    def power_of_leaders(self) -> "Power | None":
        """Return what the further seeds of the leaders resolve; None without two leaders and two such seeds."""
        return Power.of(one.losses for one in self.ranked if one.leads)

    @property
    def not_causal(self) -> list[CandidateResult]:
        """Return the models that see the tokens that they have to predict."""
        return [one for one in self.results if one.leak is not None]


def comparisons_of(runs: Sequence[Run]) -> list[Comparison]:
    """Return one comparison for each data source of the runs, sorted by name.

    If some are on text, comparisons on tasks and at further sizes become part of these.
    """
    groups: dict[tuple[float, bool, str], list[Run]] = {}
    for run in runs:
        amount = 0.0
        if run.budget is not None:
            amount = Budget.of(run.budget).amount
        groups.setdefault((amount, run.task, run.data), []).append(run)
    labels = sorted({run.label for run in runs})
    own, further, tasks = [], [], []
    for amount, is_task, data in sorted(groups):
        one = Comparison.of(data, groups[amount, is_task, data], labels)
        if amount:
            further.append(one)
        elif is_task:
            tasks.append(one)
        else:
            own.append(one)
    texts = [one for one in own if not one.is_task]
    if any(one.ranked for one in texts):
        tasks = [*tasks, *(one for one in own if one.is_task)]
    else:
        texts = own
    if not texts:  # all runs are on tasks or at further sizes
        return [*further, *tasks]
    found = []
    for text in texts:
        found.append(replace(text, tasks=tasks, sizes=[one for one in further if one.data == text.data]))
    return found


# Their earlier names.
Contestant, Contest, contests_of = CandidateResult, Comparison, comparisons_of


def front(places: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names on the Pareto front: no other is at least as low in both figures and lower in one.

    Args:
        places: Two figures by name; lower is better.

    Returns:
        The names, sorted by the first figure.
    """
    found: list[str] = []
    for name in sorted(places, key=places.__getitem__):
        if not found or places[name][1] < places[found[-1]][1] or places[name] == places[found[-1]]:
            found.append(name)
    return found


def difference(one: CandidateResult, other: CandidateResult) -> Difference | None:
    """Return the difference of their losses, `one - other`, on the seeds that both have; None without such a seed.

    Two leaders are compared only on their further seeds, because they were chosen on the others.
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

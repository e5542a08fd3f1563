"""Put the right answers of a task into words: the share of each model with its interval, and which has the most."""

import statistics
from collections.abc import Iterable, Mapping

from samout_train.experiments.compare.intervals import CONFIDENCE, interval_of_mean, paired_difference
from samout_train.experiments.compare.results import CandidateResult, Comparison

NOTE = (
    " Tasks: share of right answers in the first test, with chance in brackets; mean of the scored seeds with its "
    f"{CONFIDENCE:.0%} interval over seeds, which leaves out that the test has a finite number of answers."
)


def tests_of(comparison: Comparison) -> list[str]:
    """Return the tests of a task in order, with chance in brackets; empty if the data is not a task."""
    found: dict[str, None] = {}
    for one in comparison.ranked:
        found |= dict.fromkeys(one.shares)
    return list(found)


def with_chance(test: str) -> str:
    """Return `length 32 (chance 0.5)` for `length 32 (0.5)`."""
    name, bracket, chance = test.rpartition("(")
    return f"{name}{bracket}chance {chance}"


def share_in_words(shares: Mapping[int, float]) -> str:
    """Return the mean share of right answers over seeds, as `0.953 (0.921 to 0.985)`; empty without shares.

    The interval is clipped to 0 and 1.
    """
    if not shares:
        return ""
    values = list(shares.values())
    mean, reach = statistics.fmean(values), interval_of_mean(values)
    if reach is None:
        return f"{mean:.3f}"
    return f"{mean:.3f} ({max(0.0, mean - reach):.3f} to {min(1.0, mean + reach):.3f})"


def answers_columns(comparison: Comparison) -> list[tuple[str, dict[str, str]]]:
    """Return the columns of right answers: each a head, and the cells of the models by label.

    A task has a column for each of its tests. A text has one for the first test of each task that goes with it.
    """
    columns = []
    for test in tests_of(comparison):
        cells = {one.label: share_in_words(one.shares.get(test, {})) for one in comparison.ranked}
        columns.append((with_chance(test), cells))
    for task in comparison.tasks:
        for test in tests_of(task)[:1]:
            cells = {one.label: share_in_words(one.shares.get(test, {})) for one in task.ranked}
            columns.append((f"{task.data}, {with_chance(test)}", cells))
    return columns


def most_right(comparison: Comparison) -> Iterable[str]:
    """Yield a sentence: which model has the most right answers in a task's first test, and how the others compare."""
    for test in tests_of(comparison)[:1]:
        ranked = [one for one in comparison.ranked if one.shares.get(test)]
        shares = {one.label: one.shares[test] for one in ranked}
        common = set.intersection(*map(set, shares.values())) if shares else set()
        means = {}
        for label, by_seed in shares.items():
            means[label] = statistics.fmean(by_seed[seed] for seed in common or by_seed)
        ranked.sort(key=lambda one: -means[one.label])
        best, *others = ranked
        text = f"On {comparison.data}, {best.label} has the most right answers at {with_chance(test)}: "
        text += share_in_words(best.shares[test])
        by_word: dict[str, list[str]] = {}
        for other in others:
            by_word.setdefault(_against(other, best, test), []).append(other.label)
        for word, labels in by_word.items():
            text += f"; {word} {', '.join(labels)}"
        yield f"{text}."


def _against(one: CandidateResult, best: CandidateResult, test: str) -> str:
    seeds = [seed for seed in one.shares[test] if seed in best.shares[test]]
    if len(seeds) < 2:
        return "unknown from the seeds in common:"
    ours = [one.shares[test][seed] for seed in seeds]
    found = paired_difference(ours, [best.shares[test][seed] for seed in seeds])
    if found.within_noise:
        return "within noise of it:"
    if found.mean > 0:
        return "on the seeds that both have, more than noise ABOVE it:"
    return "more than noise below it:"

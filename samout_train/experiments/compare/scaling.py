"""Fit the loss of each model against its size, and tell whether two slopes differ.

The line is a power law: the logarithm of the loss is linear in that of the parameters, or of the training FLOPs. It is
fitted to all scored seeds at all sizes by least squares, and the interval of its slope is Student's.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from samout_train.experiments.compare.intervals import CONFIDENCE, Difference, student_t
from samout_train.experiments.compare.results import Comparison
from samout_train.experiments.compare.runs import Run

FEWEST_FOR_AN_INTERVAL = 3  # points: two always lie on their line
NARROWEST = 1.2  # largest size over smallest one
NOTE = (
    "Loss at each size: mean of the seeds that all models are scored on. Exponent: the loss falls as parameters, or "
    "training FLOPs, to this power: a power law without a floor, fitted by least squares to the logarithms of all "
    f"these seeds, with the {CONFIDENCE:.0%} interval of its exponent. It describes these sizes, and no larger ones."
)
SizeOf = Callable[[Run], float | None]
Place = tuple[str | None, int]  # budget and seed of a run


@dataclass(frozen=True)
class Line:
    """A line fitted by least squares, y = intercept + slope x.

    Args:
        slope: Slope of the line.
        intercept: The line's y at x = 0.
        reach: How far the 95 % interval of the slope reaches to either side; None for fewer than three points.
    """

    slope: float
    intercept: float
    reach: float | None

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> "Line | None":
        """Return the line through some points; None if all have the same x.

        Draper and Smith, Applied Regression Analysis, 1.4: the standard error of the slope is s / sqrt(Sxx), with s²
        the sum of squared residuals over the number of points less two.
        """
        if len({x for x, _ in points}) < 2:
            return None
        mean_x, mean_y = statistics.fmean(x for x, _ in points), statistics.fmean(y for _, y in points)
        squares = sum((x - mean_x) ** 2 for x, _ in points)
        slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / squares
        intercept = mean_y - slope * mean_x
        if len(points) < FEWEST_FOR_AN_INTERVAL:
            return cls(slope, intercept, None)
        degrees = len(points) - 2
        variance = sum((y - intercept - slope * x) ** 2 for x, y in points) / degrees
        return cls(slope, intercept, student_t(CONFIDENCE, degrees) * math.sqrt(variance / squares))


def parameters_of(run: Run) -> float | None:
    """Return the parameters of a run; None if they are unknown."""
    return _figure(run, "parameters")


def training_flops_of(run: Run) -> float | None:
    """Return the FLOPs of the matrix products of a whole run, of all places in its rows; None if they are unknown."""
    data, product = run.config.get("data") or {}, 1.0
    of_run = (_figure(run, "training_flops_per_token"), _figure(run, "steps"))
    for factor in (*of_run, data.get("batch_size"), data.get("seq_len")):
        if not isinstance(factor, int | float):
            return None
        product *= factor
    return product


def sizes_of_all(comparison: Comparison) -> list[Comparison]:
    """Return a comparison and those at other sizes, the smallest models first."""
    found = []
    for one in (comparison, *comparison.sizes):
        sizes = [size for size in (model.figure("parameters") for model in one.ranked) if size is not None]
        if sizes:
            found.append((statistics.fmean(sizes), one))
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def points_of(comparison: Comparison, label: str, size_of: SizeOf) -> dict[Place, tuple[float, float]]:
    """Return size and loss of the scored runs of a model at all sizes, by budget and seed.

    Args:
        comparison: The comparison at its own size.
        label: Label of the model.
        size_of: Returns the size of a run.
    """
    found = {}
    for at_size in (comparison, *comparison.sizes):
        for one in at_size.ranked:
            if one.label != label:
                continue
            for run in one.counted:
                size, loss = size_of(run), run.loss
                if size and loss is not None and loss > 0 and run.seed is not None and not run.leader:
                    found[run.budget, run.seed] = (size, loss)
    return found


def line_of(points: Iterable[tuple[float, float]]) -> Line | None:
    """Return the line through the logarithms of some sizes and losses; None if the sizes are about the same.

    With `train_flops`, all models have the same FLOPs up to a part of a step, whose loss has no exponent over them.
    """
    points = list(points)
    sizes = [size for size, _ in points]
    if not sizes or max(sizes) / min(sizes) < NARROWEST:
        return None
    return Line.through([(math.log(size), math.log(loss)) for size, loss in points])


def slope_difference(comparison: Comparison, label: str, other: str, size_of: SizeOf) -> Difference | None:
    """Return the slope of model `label` minus the slope of model `other`, with its interval; None without two sizes.

    It is the slope of the logarithm of the ratio of their losses, seed by seed. Whatever both share, such as the luck
    of a seed or a curvature, cancels.
    """
    ours, theirs = points_of(comparison, label, size_of), points_of(comparison, other, size_of)
    pairs = []
    for place, (size, loss) in ours.items():
        if place in theirs:
            their_size, their_loss = theirs[place]
            pairs.append((math.log(size * their_size) / 2, math.log(loss / their_loss)))
    line = Line.through(pairs)
    if line is None:
        return None
    if line.reach is None:
        return Difference(line.slope, None, None, len(pairs))
    return Difference(line.slope, line.slope - line.reach, line.slope + line.reach, len(pairs))


def slope_in_words(line: Line | None) -> str:
    """Return a slope and its interval, as `-0.072 (-0.080 to -0.064)`; empty without a line."""
    if line is None:
        return ""
    if line.reach is None:
        return f"{line.slope:.3f}"
    return f"{line.slope:.3f} ({line.slope - line.reach:.3f} to {line.slope + line.reach:.3f})"


def scaling_table(comparison: Comparison) -> dict[str, Any] | None:
    """Return the losses at each size and the slopes, a row for each model with a line; None without further sizes."""
    at_sizes = sizes_of_all(comparison)
    if len(at_sizes) < 2:
        return None
    names = []
    for at_size in at_sizes:
        sizes = [size for size in (one.figure("parameters") for one in at_size.ranked) if size is not None]
        names.append(f"{statistics.fmean(sizes):,.0f} parameters")
    rows = []
    for one in comparison.ranked:
        cells = [one.label]
        for at_size in at_sizes:
            cells.append(_mean_loss(at_size, one.label))
        for size_of in (parameters_of, training_flops_of):
            cells.append(slope_in_words(line_of(points_of(comparison, one.label, size_of).values())))
        rows.append(cells)
    head = ["model", *names, "exponent of parameters", "exponent of training FLOPs"]
    return {"head": head, "rows": rows, "note": NOTE}


def steepest(comparison: Comparison) -> Iterable[str]:
    """Yield a sentence: whose loss falls fastest with the parameters, and how its slope compares with the others'."""
    at_sizes = sizes_of_all(comparison)
    slopes = {}
    for one in comparison.ranked:
        line = line_of(points_of(comparison, one.label, parameters_of).values())
        if line is not None:
            slopes[one.label] = line
    if len(at_sizes) < 2 or not slopes:
        return
    best, *others = sorted(slopes, key=lambda label: slopes[label].slope)
    text = f"Over {len(at_sizes)} sizes, the loss of {best} falls fastest, as parameters to the power of "
    text += slope_in_words(slopes[best])
    by_word: dict[str, list[str]] = {}
    for other in others:
        found = slope_difference(comparison, other, best, parameters_of)
        shown = other
        if found is not None and found.low is not None and found.high is not None:
            shown += f", by {found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"
        by_word.setdefault(_told_apart(found), []).append(shown)
    for word, labels in by_word.items():
        text += f"; {word} {'; '.join(labels)}"
    yield f"{text}."


def _told_apart(found: Difference | None) -> str:
    if found is None or found.within_noise is None:
        return "too few runs to tell it from the slope of"
    if found.within_noise:
        return "its slope cannot be told from that of"
    return "its slope differs by more than noise from that of"


def _mean_loss(comparison: Comparison, label: str) -> str:
    for one in comparison.ranked:
        if one.label == label and one.first_losses:
            return f"{statistics.fmean(one.first_losses.values()):.3f}"
    return ""


def _figure(run: Run, key: str) -> float | None:
    value: Any = (run.summary or {}).get(key)
    if isinstance(value, int | float):
        return float(value)
    return None

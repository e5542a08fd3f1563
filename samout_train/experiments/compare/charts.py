"""Draw the charts of a comparison with matplotlib: SVG for the page, and one PNG of four of them for a README.

KINDS lists each with its title, its note, the function that draws it on matplotlib's axes, and a check for its data.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from samout_train.evaluation import DOTS_PER_INCH, heat_map, looks_of, missing_charts
from samout_train.experiments.compare.axes import (
    LONGEST_INSIDE,
    colour_of,
    draw_front,
    flop_unit,
    label_axes,
    log_of,
    log_of_numbers,
    look_of,
    share_legend,
    shown,
    time_unit,
    top_of,
    units,
    with_units,
)
from samout_train.experiments.compare.intervals import interval_of_mean
from samout_train.experiments.compare.results import CandidateResult, Comparison
from samout_train.experiments.compare.scaling import SizeOf, line_of, parameters_of, points_of, training_flops_of
from samout_train.experiments.compare.screening import best_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN_FROM = 0.15  # of training: higher losses before that would flatten the rest of the curve
Speeds = Mapping[str, Mapping[int, float]]
Draw = Callable[["Axes", Comparison, Speeds], None]
INCHES = (4.5, 3.4)
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
INCHES_OF_ENTRY = 0.1  # added to the height of a chart for each further entry
IN_OVERVIEW = 4
POINTS_OF_LABELS = 160.0  # height of a chart, which the labels of its models share


@dataclass(frozen=True)
class Chart:
    """One chart.

    Args:
        title: Title of the figure on the page.
        note: What a reader needs to know to read it.
        svg: The picture.
    """

    title: str
    note: str
    svg: bytes


def charts(comparison: Comparison, speeds: Speeds) -> list[Chart]:
    """Return the charts for which there is data; empty without matplotlib.

    Args:
        comparison: Models on the same data.
        speeds: Tokens per second by label and length.
    """
    if missing_charts() or not comparison.ranked:
        return []
    found = []
    for title, note, draw, has_figures in KINDS:
        if has_figures(comparison, speeds):
            found.append(Chart(title, note, _svg(draw, comparison, speeds)))
        if draw is _state:  # followed by the same chart for each task
            for task in comparison.tasks:
                if _has_answers(task, speeds):
                    name = f"{task.data}: right answers against bytes of state"
                    found.append(Chart(name, BY_STATE, _svg(_recall, task, speeds)))
    return found


def overview(comparison: Comparison, speeds: Speeds) -> bytes | None:
    """Return the first four charts, except the screening, together as a PNG; None without matplotlib."""
    if missing_charts() or not comparison.ranked:
        return None
    drawn = []
    for title, _, draw, has_figures in KINDS:
        if draw is not _screening and has_figures(comparison, speeds):
            drawn.append((title, draw))
    drawn = drawn[:IN_OVERVIEW]
    if not drawn:
        return None
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    num_rows = math.ceil(len(drawn) / 2)
    height = num_rows * INCHES[1] + INCHES_OF_ENTRY * len(comparison.ranked)
    with rc_context(STYLE):
        figure = Figure(figsize=(2 * INCHES[0], height), layout="constrained")
        for index, (title, draw) in enumerate(drawn, start=1):
            axes = figure.add_subplot(num_rows, 2, index)
            draw(axes, comparison, speeds)
            axes.set_title(title, fontsize=10)
        share_legend(figure)
        file = BytesIO()
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    return file.getvalue()


def tasks_chart(comparisons: Sequence[Comparison]) -> Chart | None:
    """Return a heat map of the share of right answers by model and test of a task; None without right answers.

    Args:
        comparisons: Comparisons on any data; those on tasks are drawn.
    """
    shares: dict[str, dict[str, float]] = {}
    found: set[str] = set()
    for comparison in comparisons:
        for one in comparison.ranked:
            for test, share in one.accuracies.items():
                shares.setdefault(f"{comparison.data}, {test}", {})[one.label] = share
                found.add(one.label)
    if missing_charts() or not shares:
        return None
    labels = sorted(found)
    tests = sorted(shares, key=natural)
    cells = []
    for test in tests:
        cells.append([shares[test].get(label) for label in labels])
    columns = [label.replace("$", r"\$") for label in labels]
    note = "Share of right answers, mean of the scored runs, with chance in brackets."
    return Chart("Tasks", note, _as_svg(lambda: heat_map(cells, rows=tests, columns=columns, title="")))


def _svg(draw: Draw, comparison: Comparison, speeds: Speeds) -> bytes:
    def drawn() -> "Figure":
        from matplotlib.figure import Figure

        figure = Figure(figsize=(INCHES[0], _height(comparison)), layout="constrained")
        draw(figure.subplots(), comparison, speeds)
        return figure

    return _as_svg(drawn)


def _height(comparison: Comparison) -> float:
    """Return the inches of a chart, with room for a legend of all models below it."""
    return INCHES[1] + INCHES_OF_ENTRY * max(0, len(comparison.ranked) - LONGEST_INSIDE)


def _as_svg(drawn: "Callable[[], Figure]") -> bytes:
    from matplotlib import rc_context

    with rc_context(STYLE):
        file = BytesIO()
        drawn().savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _final_losses(axes: "Axes", comparison: Comparison, speeds: Speeds) -> None:
    for place, one in enumerate(comparison.ranked):
        colour = colour_of(comparison, one.label)
        losses = list(one.losses.values())
        axes.plot(losses, [-place] * len(losses), "o", color=colour, fillstyle="none", alpha=0.8)
        axes.plot([one.mean or 0.0], [-place], "|", color=colour, markersize=18, markeredgewidth=2)
        reach = interval_of_mean(losses)
        if reach is not None and one.mean is not None:
            axes.plot([one.mean - reach, one.mean + reach], [-place, -place], color=colour, linewidth=1)
    _one_row_each(axes, comparison.ranked)
    if (top := top_of(_means(comparison))) is not None:
        axes.set_xlim(right=top)
        for place, one in enumerate(comparison.ranked):
            if one.mean is not None and one.mean > top:
                axes.annotate(
                    f"{one.mean:.3f} \N{RIGHTWARDS ARROW}",
                    (1, -place),
                    xycoords=("axes fraction", "data"),
                    color=colour_of(comparison, one.label),
                    ha="right",
                    va="center",
                )


def _means(comparison: Comparison) -> list[float]:
    return [one.mean for one in comparison.ranked if one.mean is not None]


def _screening(axes: "Axes", comparison: Comparison, speeds: Speeds) -> None:
    screened = [one for one in comparison.results if one.screening_losses]
    for place, one in enumerate(screened):
        colour = colour_of(comparison, one.label)
        losses = [loss for loss in one.screening_losses.values() if loss is not None]
        if losses:
            axes.plot(losses, [-place] * len(losses), "o", color=colour, fillstyle="none", alpha=0.8)
            axes.plot([min(losses)], [-place], "o", color=colour)
        finals = list(one.losses.values())
        axes.plot(finals, [-place] * len(finals), "|", color=colour, markersize=12)
    _one_row_each(axes, screened)


def _one_row_each(axes: "Axes", models: Sequence[CandidateResult]) -> None:
    """Name the rows of a chart with the loss on its horizontal axis: one model per row, the first one on top."""
    size = min(9.0, POINTS_OF_LABELS / len(models))
    places = [-place for place in range(len(models))]
    names = [shown(one) + " (not causal)" * (one.leak is not None) for one in models]
    axes.set_yticks(places, names, fontsize=size)
    axes.set_ylim(0.6 - len(models), 0.6)
    axes.set_xlabel("validation loss, nats per token")
    axes.grid(alpha=0.3)


def _has_screening(comparison: Comparison, speeds: Speeds) -> bool:
    return any(best_rate(by_rate) is not None for by_rate in comparison.screening_losses.values())


def _curves(
    of_step: Callable[[CandidateResult], float | None], unit_of: Callable[[float], tuple[str, float]] | None = None
) -> Draw:
    """Return a function that draws losses against cumulative cost.

    Args:
        of_step: Returns the cost of a model's step; None if it is unknown.
        unit_of: Chooses the unit of the axis by its largest value; None for plain numbers such as 150 M.
    """

    def draw(axes: "Axes", comparison: Comparison, speeds: Speeds) -> None:
        curves: list[tuple[CandidateResult, float, list[tuple[int, float]]]] = []
        for one in comparison.ranked:
            cost, curve = of_step(one), _mean_curve(one)
            if cost and curve:
                curves.append((one, cost, curve))
        name, size = "tokens", 1.0
        if unit_of is not None:
            name, size = unit_of(max(cost * curve[-1][0] for _, cost, curve in curves))
        tops = []
        for one, cost, curve in curves:
            costs, losses = [], []
            for step, loss in curve:
                costs.append(step * cost / size)
                losses.append(loss)
            look = look_of(comparison, one.label)
            axes.plot(costs, losses, label=shown(one), markersize=3, linewidth=1.3, **look._asdict())
            tops.append(_first_shown(curve))
        axes.set_ylim(top=min(max(tops) * 1.02, top_of(tops) or math.inf))
        axes.locator_params("x", nbins=6)
        if unit_of is None:
            with_units(axes)
        label_axes(axes, name, "validation loss, nats per token")

    return draw


def _first_shown(curve: Sequence[tuple[int, float]]) -> float:
    """Return the first loss of a curve after the early steps, which would flatten it."""
    last_step, last_loss = curve[-1]
    for step, loss in curve:
        if step >= SHOWN_FROM * last_step:
            return loss
    return last_loss


def _tokens(one: CandidateResult) -> float | None:
    tokens, steps = one.figure("tokens_seen"), one.figure("steps")
    if not tokens or not steps:
        return None
    return tokens / steps


def _seconds(one: CandidateResult) -> float | None:
    seconds, steps = one.figure("train_seconds"), one.figure("steps")
    if not seconds or not steps:
        return None
    return seconds / steps


def _flops(one: CandidateResult) -> float | None:
    tokens, flops = _tokens(one), one.figure("training_flops_per_token")
    if not tokens or not flops:
        return None
    return tokens * flops


def _mean_curve(one: CandidateResult) -> list[tuple[int, float]]:
    """Return the mean loss over the scored runs at each step that all of them have."""
    by_step: dict[int, list[float]] = {}
    for run in one.counted:
        for step, loss in run.curve:
            by_step.setdefault(step, []).append(loss)
    curve = []
    for step, losses in sorted(by_step.items()):
        if len(losses) == len(one.counted):
            curve.append((step, sum(losses) / len(losses)))
    return curve


def _by_length(axes: "Axes", comparison: Comparison, speeds: Speeds) -> None:
    lengths: set[int] = set()
    for one in comparison.ranked:
        _line(axes, comparison, one, one.loss_by_length)
        lengths.update(length for length, _ in one.loss_by_length)
    log_of(axes, lengths)
    label_axes(axes, "window, tokens", "loss of the same text, nats per token")


def _speed(axes: "Axes", comparison: Comparison, speeds: Speeds) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    for one in comparison.ranked:
        _line(axes, comparison, one, sorted(speeds.get(one.label, {}).items()))
    log_of(axes, set().union(*speeds.values()))
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(units())
    label_axes(axes, "sequence length, tokens", "tokens per second, forward and backward")


def _state(axes: "Axes", comparison: Comparison, speeds: Speeds) -> None:
    places = comparison.by_state["loss"]
    for one in comparison.ranked:
        if one.label in places:
            size, loss = places[one.label]
            look = look_of(comparison, one.label)
            axes.plot([size], [loss], look.marker, color=look.color, label=shown(one))
    draw_front(axes, comparison.fronts.get("loss", {}))
    log_of_numbers(axes)
    if (top := top_of(loss for _, loss in places.values())) is not None:
        axes.set_ylim(top=top)
        smallest = min(size for size, _ in places.values())
        for label, (size, loss) in places.items():
            if loss > top:
                align = "left" if size == smallest else "center"  # at the edge, inside the axes
                axes.annotate(
                    f"{loss:.3f} \N{UPWARDS ARROW}",
                    (size, 1),
                    xycoords=("data", "axes fraction"),
                    color=colour_of(comparison, label),
                    ha=align,
                    va="top",
                )
    label_axes(axes, "state after a training row, bytes", "validation loss, nats per token")
    legend = axes.get_legend()
    if legend is not None and len(legend.get_texts()) <= LONGEST_INSIDE:
        legend.set_frame_on(True)  # otherwise its markers look like points of the chart


def accuracy_by_state(comparison: Comparison) -> dict[str, list[tuple[float, float]]]:
    """Return bytes of state and share of right answers at each width of a model, by its label without the width."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for label, place in comparison.by_state["accuracy"].items():
        lines.setdefault(re.sub(r" ?\bhidden_size=\d+", "", label), []).append(place)
    return {label: sorted(lines[label]) for label in sorted(lines)}


def _recall(axes: "Axes", comparison: Comparison, speeds: Speeds) -> None:
    lines = accuracy_by_state(comparison)
    looks = looks_of(comparison.labels if set(lines) <= set(comparison.labels) else lines)
    for label, places in lines.items():
        look = looks[label]._asdict()
        axes.plot(*zip(*places, strict=True), label=label.replace("$", r"\$"), markersize=4, linewidth=1.3, **look)
    draw_front(axes, comparison.fronts.get("accuracy", {}))
    log_of_numbers(axes)
    axes.set_ylim(-0.03, 1.03)
    label_axes(axes, "bytes of state after a training row", "share of right answers")


def _scaling(size_of: SizeOf, name: str) -> Draw:
    """Return a function that draws losses against size with the fitted line of each model, both axes logarithmic."""

    def draw(axes: "Axes", comparison: Comparison, speeds: Speeds) -> None:
        from matplotlib.ticker import MaxNLocator, NullLocator

        axes.set_yscale("log")
        for one in comparison.ranked:
            points = points_of(comparison, one.label, size_of).values()
            line = line_of(points)
            if line is None:
                continue
            look = look_of(comparison, one.label)
            sizes, losses = zip(*points, strict=True)
            axes.plot(sizes, losses, look.marker, color=look.color, fillstyle="none", markersize=5, alpha=0.7)
            ends = (min(sizes), max(sizes))
            fitted = [math.exp(line.intercept + line.slope * math.log(end)) for end in ends]
            axes.plot(ends, fitted, color=look.color, linewidth=1.5, marker=look.marker, markersize=0, label=shown(one))
        log_of_numbers(axes)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:.3g}")
        label_axes(axes, name, "validation loss, nats per token")

    return draw


def _has_lines(size_of: SizeOf) -> Callable[[Comparison, Speeds], bool]:
    """Return a check that some model has a line over sizes."""

    def check(comparison: Comparison, speeds: Speeds) -> bool:
        return any(line_of(points_of(comparison, one.label, size_of).values()) for one in comparison.ranked)

    return check


def _rates(axes: "Axes", comparison: Comparison, speeds: Speeds) -> None:
    rates: set[float] = set()
    for one in comparison.ranked:
        points = []
        for rate, run in one.rates.items():
            rates.add(rate)
            if run.loss is not None:
                points.append((rate, run.loss))
        _line(axes, comparison, one, points)
    log_of(axes, rates)
    label_axes(axes, "learning rate", "validation loss, nats per token")


def _line(axes: "Axes", comparison: Comparison, one: CandidateResult, points: Sequence[tuple[float, float]]) -> None:
    if points:
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, label=shown(one), markersize=4, linewidth=1.3, **look_of(comparison, one.label)._asdict())


def _has_line(points: Callable[[CandidateResult], int]) -> Callable[[Comparison, Speeds], bool]:
    """Return a check that some model has the two points that a line needs."""

    def check(comparison: Comparison, speeds: Speeds) -> bool:
        return any(points(one) > 1 for one in comparison.ranked)

    return check


def _on_curve(of_step: Callable[[CandidateResult], float | None]) -> Callable[[CandidateResult], int]:
    """Return a function that counts the points of a model's curve: 0 if the cost of a step is unknown."""

    def count(one: CandidateResult) -> int:
        if not of_step(one):
            return 0
        return len(_mean_curve(one))

    return count


def _has_seeds(comparison: Comparison, speeds: Speeds) -> bool:
    return sum(len(one.losses) for one in comparison.ranked) > 1


def _has_answers(comparison: Comparison, speeds: Speeds) -> bool:
    return len(comparison.by_state["accuracy"]) > 1


def _has_states(comparison: Comparison, speeds: Speeds) -> bool:
    return len(comparison.by_state["loss"]) > 1


def _has_speeds(comparison: Comparison, speeds: Speeds) -> bool:
    return any(len(by_length) > 1 for by_length in speeds.values())


def natural(test: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers in a text by their size."""
    key = []
    for part in re.split(r"(\d+)", test):
        if part.isdigit():
            key.append((int(part), ""))
        else:
            key.append((0, part))
    return key


BY_STATE = (
    "Of a task, in its first test; means over the seeds that all models have. A line joins the widths of one model. "
    "The front: no other one has as small a state with as many right answers."
)
LINES = "One mark for each scored seed at each size. Lines: power laws fitted to them, straight on these axes."
FIXED = (
    "Mean of the scored runs, on the fixed batches that are evaluated during training. A curve far above the others is "
    "not shown."
)
KINDS: Sequence[tuple[str, str, Draw, Callable[[Comparison, Speeds], bool]]] = (
    (
        "Final loss",
        "Circles: one seed each. Stroke and line: the mean and its 95 % interval. Arrow: a mean far beyond the others. "
        "Compare models by their differences.",
        _final_losses,
        _has_seeds,
    ),
    (
        "Screening",
        "Circles: the short runs, one for each learning rate, the best one filled. Strokes: the scored seeds.",
        _screening,
        _has_screening,
    ),
    (
        "Loss against parameters",
        LINES,
        _scaling(parameters_of, "parameters"),
        _has_lines(parameters_of),
    ),
    (
        "Loss against training FLOPs",
        LINES,
        _scaling(training_flops_of, "training FLOPs"),
        _has_lines(training_flops_of),
    ),
    (
        "Loss against tokens",
        FIXED,
        _curves(_tokens),
        _has_line(_on_curve(_tokens)),
    ),
    (
        "Loss against length",
        "The beginning of the validation text in windows of each length, with the state carried over.",
        _by_length,
        _has_line(lambda one: len(one.loss_by_length)),
    ),
    (
        "Loss against bytes of state",
        "State of one sequence in float32. A cache grows with the sequence, a recurrent state does not. Losses: means "
        "over the seeds that all models have. The front: no other model has as small a state with as low a mean loss. "
        "Arrow: a loss far above the others.",
        _state,
        _has_states,
    ),
    (
        "Accuracy against bytes of state",
        BY_STATE,
        _recall,
        _has_answers,
    ),
    (
        "Loss against time",
        f"{FIXED} Training time alone, with the load that the machine had.",
        _curves(_seconds, time_unit),
        _has_line(_on_curve(_seconds)),
    ),
    (
        "Loss against operations",
        f"{FIXED} Operations of the matrix products, forward and backward.",
        _curves(_flops, flop_unit),
        _has_line(_on_curve(_flops)),
    ),
    (
        "Speed against length",
        "Forward and backward pass over equally many tokens at each length; models in turns, medians.",
        _speed,
        _has_speeds,
    ),
    (
        "Learning rates",
        "Losses on the seed that the learning rate was chosen on.",
        _rates,
        _has_line(lambda one: len(one.rates)),
    ),
)

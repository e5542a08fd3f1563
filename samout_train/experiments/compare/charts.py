"""The charts of a comparison, by matplotlib: SVG for the page, and one PNG of four of them for a README.

KINDS lists them: of each its title, a note, how it is drawn on matplotlib's axes, and whether there are figures for it.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from samout_train.evaluation import DOTS_PER_INCH, heat_map, missing_charts
from samout_train.experiments.compare.results import CandidateResult, Comparison, interval_of_mean
from samout_train.experiments.compare.screening import best_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people who see few colours can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31", "#7F7F7F")
MARKERS = "osD^vP*Xh"
PREFIXES = ("", "kilo", "mega", "giga", "tera", "peta", "exa", "zetta")
DURATIONS = (("seconds", 1.0), ("minutes", 60.0), ("hours", 3600.0), ("days", 86400.0))
SHORTEST_AXIS = 3.0  # of a unit of time: below it, the unit before has the rounder ticks
SHOWN_FROM = 0.15  # of a training: what was lost before it would flatten all that follows
Speeds = Mapping[str, Mapping[int, float]]
Draw = Callable[["Axes", Comparison, Speeds], None]
INCHES = (4.5, 3.4)
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
IN_OVERVIEW = 4
POINTS_OF_LABELS = 160.0  # of height that the models of a chart have for their names


@dataclass(frozen=True)
class Chart:
    """One chart.

    Args:
        title: What it shows.
        note: What a reader should know of it.
        svg: The picture.
    """

    title: str
    note: str
    svg: bytes


def charts(comparison: Comparison, speeds: Speeds) -> list[Chart]:
    """Return the charts that there are figures for; none without matplotlib.

    Args:
        comparison: Models on the same data.
        speeds: Tokens a second by label and length.
    """
    if missing_charts() or not comparison.ranked:
        return []
    found = []
    for title, note, draw, has_figures in KINDS:
        if has_figures(comparison, speeds):
            found.append(Chart(title, note, _svg(draw, comparison, speeds)))
    return found


def overview(comparison: Comparison, speeds: Speeds) -> bytes | None:
    """Return the first four charts side by side, as a PNG; None without matplotlib."""
    drawn = [(title, draw) for title, _, draw, has_figures in KINDS if has_figures(comparison, speeds)][:IN_OVERVIEW]
    if missing_charts() or not comparison.ranked or not drawn:
        return None
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(2 * INCHES[0], -(-len(drawn) // 2) * INCHES[1]), layout="constrained")
        for index, (title, draw) in enumerate(drawn, start=1):
            axes = figure.add_subplot(-(-len(drawn) // 2), 2, index)
            draw(axes, comparison, speeds)
            axes.set_title(title, fontsize=10)
        file = BytesIO()
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    return file.getvalue()


def tasks_chart(comparisons: Sequence[Comparison]) -> Chart | None:
    """Return the share of right answers of each model in each test of a task, as a heat map; None where there are none.

    Args:
        comparisons: On any data; those on tasks are drawn.
    """
    shares: dict[str, dict[str, float]] = {}
    labels: list[str] = []
    for comparison in comparisons:
        for one in comparison.ranked:
            for test, share in one.accuracies.items():
                shares.setdefault(f"{comparison.data}, {test}", {})[one.label] = share
                if one.label not in labels:
                    labels.append(one.label)
    if missing_charts() or not shares:
        return None
    tests = sorted(shares, key=natural)
    cells = [[shares[test].get(label) for label in sorted(labels)] for test in tests]
    note = "Share of right answers, mean of the runs that count, with chance in brackets."
    return Chart(
        "Tasks",
        note,
        _as_svg(
            lambda: heat_map(
                cells, rows=tests, columns=[label.replace("$", r"\$") for label in sorted(labels)], title=""
            )
        ),
    )


def _svg(draw: Draw, comparison: Comparison, speeds: Speeds) -> bytes:
    def drawn() -> "Figure":
        from matplotlib.figure import Figure

        figure = Figure(figsize=INCHES, layout="constrained")
        draw(figure.subplots(), comparison, speeds)
        return figure

    return _as_svg(drawn)


def _as_svg(drawn: "Callable[[], Figure]") -> bytes:
    from matplotlib import rc_context

    with rc_context(STYLE):
        file = BytesIO()
        drawn().savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _look(comparison: Comparison, one: CandidateResult) -> dict[str, Any]:
    """The colour and the marker of a model, the same in each chart."""
    index = sorted(other.label for other in comparison.results).index(one.label)
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def shown(one: CandidateResult) -> str:
    """A label as matplotlib takes it: a dollar begins a formula there, and what begins with a line is in no legend."""
    text = one.label.replace("$", r"\$")
    if text.startswith("_"):
        return f"\N{THIN SPACE}{text}"
    return text


def _final_losses(axes: "Axes", comparison: Comparison, speeds: Speeds) -> None:
    for place, one in enumerate(comparison.ranked):
        colour = _look(comparison, one)["color"]
        losses = list(one.losses.values())
        axes.plot(losses, [-place] * len(losses), "o", color=colour, fillstyle="none", alpha=0.8)
        axes.plot([one.mean or 0.0], [-place], "|", color=colour, markersize=18, markeredgewidth=2)
        if (reach := interval_of_mean(losses)) is not None and one.mean is not None:
            axes.plot([one.mean - reach, one.mean + reach], [-place, -place], color=colour, linewidth=1)
    axes.set_yticks([-place for place in range(len(comparison.ranked))], [shown(one) for one in comparison.ranked])
    axes.set_ylim(0.6 - len(comparison.ranked), 0.6)
    axes.set_xlabel("validation loss, nats a token")
    axes.grid(alpha=0.3)


def _screening(axes: "Axes", comparison: Comparison, speeds: Speeds) -> None:
    screened = [one for one in comparison.results if one.screening_losses]
    for place, one in enumerate(screened):
        colour = _look(comparison, one)["color"]
        losses = [loss for loss in one.screening_losses.values() if loss is not None]
        if losses:
            axes.plot(losses, [-place] * len(losses), "o", color=colour, fillstyle="none", alpha=0.8)
            axes.plot([min(losses)], [-place], "o", color=colour)
        finals = list(one.losses.values())
        axes.plot(finals, [-place] * len(finals), "|", color=colour, markersize=12)
    labels = [shown(one) for one in screened]
    size = min(9.0, POINTS_OF_LABELS / len(screened))
    axes.set_yticks([-place for place in range(len(screened))], labels, fontsize=size)
    axes.set_ylim(0.6 - len(screened), 0.6)
    axes.set_xlabel("validation loss, nats a token")
    axes.grid(alpha=0.3)


def _has_screening(comparison: Comparison, speeds: Speeds) -> bool:
    return any(best_rate(by_rate) is not None for by_rate in comparison.screening_losses.values())


def _curves(
    of_step: Callable[[CandidateResult], float | None], unit_of: Callable[[float], tuple[str, float]] | None = None
) -> Draw:
    """Losses against what a step costs; in numbers such as 150 M where no unit is chosen by the largest."""

    def draw(axes: "Axes", comparison: Comparison, speeds: Speeds) -> None:
        costs = {one.label: of_step(one) for one in comparison.ranked}
        curves = {one.label: _mean_curve(one) for one in comparison.ranked}
        ends = [cost * curves[label][-1][0] for label, cost in costs.items() if cost and curves[label]]
        name, size = "tokens", 1.0
        if unit_of:
            name, size = unit_of(max(ends))
        tops = []
        for one in comparison.ranked:
            factor, curve = costs[one.label], curves[one.label]
            if factor is None or not curve:
                continue
            look = _look(comparison, one)
            axes.plot(
                [step * factor / size for step, _ in curve],
                [loss for _, loss in curve],
                label=shown(one),
                color=look["color"],
                marker=look["marker"],
                markersize=3,
                linewidth=1.3,
            )
            tops.append(next(loss for step, loss in curve if step >= SHOWN_FROM * curve[-1][0]))
        axes.set_ylim(top=max(tops) * 1.02)
        if unit_of is None:
            _with_units(axes)
        _finish(axes, name, "validation loss, nats a token")

    return draw


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


def flop_unit(largest: float) -> tuple[str, float]:
    """Return the unit in which so many operations are a number from 1 to 1,000, and its size: exaFLOP, 1e18."""
    power = next((power for power in range(len(PREFIXES) - 1, 0, -1) if largest >= 1000.0**power), 0)
    return f"{PREFIXES[power]}FLOP", 1000.0**power


def time_unit(largest: float) -> tuple[str, float]:
    """Return the unit for an axis that ends at so many seconds, and its size in seconds."""
    return next((unit for unit in reversed(DURATIONS) if largest >= SHORTEST_AXIS * unit[1]), DURATIONS[0])


def _mean_curve(one: CandidateResult) -> list[tuple[int, float]]:
    """The mean over the runs that count, at the steps that all of them have."""
    by_step: dict[int, list[float]] = {}
    for run in one.counted:
        for step, loss in run.curve:
            by_step.setdefault(step, []).append(loss)
    return [(step, sum(of) / len(of)) for step, of in sorted(by_step.items()) if len(of) == len(one.counted)]


def _by_length(axes: "Axes", comparison: Comparison, speeds: Speeds) -> None:
    for one in comparison.ranked:
        _line(axes, comparison, one, one.loss_by_length)
    _log_of(axes, [length for one in comparison.ranked for length, _ in one.loss_by_length])
    _finish(axes, "tokens in a window", "loss of the same text, nats a token")


def _speed(axes: "Axes", comparison: Comparison, speeds: Speeds) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    for one in comparison.ranked:
        _line(axes, comparison, one, sorted(speeds.get(one.label, {}).items()))
    _log_of(axes, [length for of in speeds.values() for length in of])
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(_units())
    _finish(axes, "tokens in a row", "tokens a second, forward and backward")


def _state(axes: "Axes", comparison: Comparison, speeds: Speeds) -> None:
    for one in comparison.ranked:
        size = one.figure("state_bytes")
        if size is not None and one.mean is not None:
            look = _look(comparison, one)
            axes.plot([size], [one.mean], look["marker"], color=look["color"], label=shown(one))
    axes.set_xscale("log")
    _with_units(axes)
    _finish(axes, "bytes of state after a training row", "validation loss, nats a token")


def accuracy_by_state(comparison: Comparison) -> dict[str, list[tuple[float, float]]]:
    """Return bytes of state and the share of right answers for the widths of each model, by its label without them."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for one in comparison.ranked:
        if place := _place(one):
            lines.setdefault(re.sub(r" ?\bhidden_size=\d+", "", one.label), []).append(place)
    return {label: sorted(lines[label]) for label in sorted(lines)}


def _recall(axes: "Axes", comparison: Comparison, speeds: Speeds) -> None:
    for number, (label, places) in enumerate(accuracy_by_state(comparison).items()):
        look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        axes.plot(*zip(*places, strict=True), label=label.replace("$", r"\$"), markersize=4, linewidth=1.3, **look)
    axes.set_xscale("log")
    axes.set_ylim(-0.03, 1.03)
    _with_units(axes)
    _finish(axes, "bytes of state after a training row", "share of right answers")


def _place(one: CandidateResult) -> tuple[float, float] | None:
    """Return bytes of state and the share of right answers in the first test of a task; None where it is no task."""
    size, shares = one.figure("state_bytes"), [*one.accuracies.values()]
    if size is None or not shares:
        return None
    return size, shares[0]


def _rates(axes: "Axes", comparison: Comparison, speeds: Speeds) -> None:
    for one in comparison.ranked:
        _line(axes, comparison, one, [(rate, run.loss) for rate, run in one.rates.items() if run.loss is not None])
    _log_of(axes, [rate for one in comparison.ranked for rate in one.rates])
    _finish(axes, "learning rate", "validation loss, nats a token")


def _line(axes: "Axes", comparison: Comparison, one: CandidateResult, points: Iterable[tuple[float, float]]) -> None:
    places = list(points)
    if places:
        axes.plot(*zip(*places, strict=True), label=shown(one), markersize=4, linewidth=1.3, **_look(comparison, one))


def _log_of(axes: "Axes", places: Iterable[float]) -> None:
    """A logarithmic axis whose ticks are the places that there are figures for."""
    from matplotlib.ticker import NullLocator

    ticks = sorted(set(places))
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{tick:,}" if tick >= 1 else f"{tick:g}" for tick in ticks])


def _with_units(axes: "Axes") -> None:
    axes.xaxis.set_major_formatter(_units())


def _units() -> Any:
    """Numbers such as 20 k and 150 M."""
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep=" ")


def _finish(axes: "Axes", x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7.5, frameon=False, ncols=2)


def _has_line(points: Callable[[CandidateResult], int]) -> Callable[[Comparison, Speeds], bool]:
    """Return a check that some model has the two points which a line needs."""
    return lambda comparison, speeds: any(points(one) > 1 for one in comparison.ranked)


def _on_curve(of_step: Callable[[CandidateResult], float | None]) -> Callable[[CandidateResult], int]:
    return lambda one: len(_mean_curve(one)) if of_step(one) else 0


def natural(test: str) -> list[tuple[int, str]]:
    """Numbers by their size, and behind each other's task."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", test)]


FIXED = "Of the runs that count, their mean, on the fixed batches that are evaluated during training."
KINDS: Sequence[tuple[str, str, Draw, Callable[[Comparison, Speeds], bool]]] = (
    (
        "Final loss",
        "Circles: a seed each. Stroke and line: mean, and its own 95 % interval; what is compared is differences.",
        _final_losses,
        lambda comparison, speeds: sum(len(one.losses) for one in comparison.ranked) > 1,
    ),
    (
        "Screening",
        "Circles: the short runs, one of each rate, the best one filled. Strokes: the seeds that count.",
        _screening,
        _has_screening,
    ),
    (
        "Loss against tokens",
        FIXED,
        _curves(_tokens),
        _has_line(_on_curve(_tokens)),
    ),
    (
        "Loss against length",
        "The beginning of the validation text in windows of each length, with the state carried on.",
        _by_length,
        _has_line(lambda one: len(one.loss_by_length)),
    ),
    (
        "Loss against bytes of state",
        "Of one sequence, float32. A cache grows with the sequence, a recurrent state does not.",
        _state,
        lambda comparison, speeds: sum(one.figure("state_bytes") is not None for one in comparison.ranked) > 1,
    ),
    (
        "Accuracy against bytes of state",
        "Of a task, in its first test. A line joins the widths of one model.",
        _recall,
        lambda comparison, speeds: sum(_place(one) is not None for one in comparison.ranked) > 1,
    ),
    (
        "Loss against time",
        f"{FIXED} Seconds of training alone, as these runs had the machine.",
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
        "Forward and backward pass over as many tokens at each length; models in turns, medians.",
        _speed,
        lambda comparison, speeds: any(len(by_length) > 1 for by_length in speeds.values()),
    ),
    (
        "Learning rates",
        "On the seed that the best rates were chosen by.",
        _rates,
        _has_line(lambda one: len(one.rates)),
    ),
)

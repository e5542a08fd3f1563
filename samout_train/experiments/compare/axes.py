"""Axes, units, colours and legends that the charts of a comparison share."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from samout_train.evaluation import Look, looks_of
from samout_train.experiments.compare.results import CandidateResult, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PREFIXES = ("", "kilo", "mega", "giga", "tera", "peta", "exa", "zetta")
DURATIONS = (("seconds", 1.0), ("minutes", 60.0), ("hours", 3600.0), ("days", 86400.0))
SHORTEST_AXIS = 3.0  # in a unit of time: on a shorter axis, the next smaller unit has rounder ticks
LONGEST_INSIDE = 4  # entries of a legend that fit between the lines
COLUMNS_OF_ALL = 5  # of a legend that four charts share
ROOM_ABOVE = 0.2  # of the spread of the shown losses, as room to mark higher ones
NARROW_LABEL = 20  # characters: three labels of this length fit side by side below a chart


def colour_of(comparison: Comparison, label: str) -> str:
    """Return the colour of a model, the same in every chart and table of a page."""
    return look_of(comparison, label).color


def look_of(comparison: Comparison, label: str) -> Look:
    """Return the colour and the marker of a model."""
    labels = comparison.labels or [one.label for one in comparison.results]
    return looks_of(labels)[label]


def shown(one: CandidateResult) -> str:
    """Return a label for matplotlib, which reads a dollar as a formula and hides a leading underscore in legends."""
    text = one.label.replace("$", r"\$")
    if text.startswith("_"):
        return f"\N{THIN SPACE}{text}"
    return text


def flop_unit(largest: float) -> tuple[str, float]:
    """Return the unit in which a number of operations is 1 to 1,000, and its size, such as exaFLOP and 1e18."""
    power = 0
    while power + 1 < len(PREFIXES) and largest >= 1000.0 ** (power + 1):
        power += 1
    return f"{PREFIXES[power]}FLOP", 1000.0**power


def time_unit(largest: float) -> tuple[str, float]:
    """Return the unit for an axis that ends at this many seconds, and its size in seconds."""
    chosen = DURATIONS[0]
    for name, seconds in DURATIONS:
        if largest >= SHORTEST_AXIS * seconds:
            chosen = (name, seconds)
    return chosen


def draw_front(axes: "Axes", places: Mapping[str, tuple[float, float]]) -> None:
    """Draw a front behind the points, in steps: at a size between two models, the smaller one is the best that fits."""
    if places:
        xs, ys = zip(*places.values(), strict=True)
        axes.plot(xs, ys, "--", drawstyle="steps-post", color="0.55", linewidth=1, zorder=1, label="front")


def log_of_numbers(axes: "Axes") -> None:
    """Make the horizontal axis logarithmic, with numbers such as 2 k at as many ticks as there is room for."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    for times, subs in ((30, (1.0, 2.0, 5.0)), (300, (1.0, 3.0)), (math.inf, (1.0,))):
        if high / low < times:
            axes.xaxis.set_major_locator(LogLocator(subs=subs))
            break
    with_units(axes)
    axes.xaxis.set_minor_formatter(NullFormatter())


def log_of(axes: "Axes", places: Iterable[float]) -> None:
    """Make the horizontal axis logarithmic, with a tick at each place that has data."""
    from matplotlib.ticker import NullLocator

    ticks = sorted(places)
    names = []
    for tick in ticks:
        style = "g"
        if tick >= 1:
            style = ","
        names.append(format(tick, style))
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, names)


def with_units(axes: "Axes") -> None:
    """Write the numbers of the horizontal axis as 20 k and 150 M."""
    axes.xaxis.set_major_formatter(units())


def units() -> Any:
    """Return a formatter that writes 20 k and 150 M."""
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep=" ")


def top_of(losses: Iterable[float]) -> float | None:
    """Return the highest loss that a chart shows if a few far higher losses would flatten the others; else None.

    At most a quarter of the losses are cut off, and only if the gap below them exceeds the spread of the others.
    """
    ordered = sorted(losses)
    for most in range(len(ordered) - 1, -(-3 * len(ordered) // 4) - 1, -1):
        spread = ordered[most - 1] - ordered[0]
        if spread > 0 and ordered[most] - ordered[most - 1] > spread:
            return ordered[most - 1] + ROOM_ABOVE * spread
    return None


def label_axes(axes: "Axes", x: str, y: str) -> None:
    """Name the axes and add the legend: inside if it is short, below the chart if it would cover the lines."""
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    _, labels = axes.get_legend_handles_labels()
    if len(labels) <= LONGEST_INSIDE:
        axes.legend(fontsize=7.5, frameon=False, ncols=2)
        return
    columns = 2
    if max(map(len, labels)) <= NARROW_LABEL:
        columns = 3
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.45, -0.18),
        fontsize=7.5,
        frameon=False,
        ncols=columns,
        columnspacing=1.0,
    )


def share_legend(figure: "Figure") -> None:
    """Replace the legends below the charts by one legend below all of them."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        legend = axes.get_legend()
        if legend is not None and len(legend.get_texts()) > LONGEST_INSIDE:
            handles, labels = axes.get_legend_handles_labels()
            entries |= dict(zip(labels, handles, strict=True))
            legend.remove()
    if entries:
        figure.legend(
            entries.values(), entries, loc="outside lower center", fontsize=7.5, frameon=False, ncols=COLUMNS_OF_ALL
        )

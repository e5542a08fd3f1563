"""The charts of a comparison, by matplotlib: SVG for the page, and one PNG of four of them for a README."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from samout_train.evaluation import DOTS_PER_INCH, heat_map, missing_charts
from samout_train.experiments.compare.chart_kinds import KINDS, Draw, Speeds
from samout_train.experiments.compare.results import Contest
from samout_train.experiments.heat_map import natural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCHES = (4.5, 3.4)
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
IN_OVERVIEW = 4


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


def charts(contest: Contest, speeds: Speeds) -> list[Chart]:
    """Those that there are figures for; none without matplotlib.

    Args:
        contest: Models on the same data.
        speeds: Tokens a second by label and length.
    """
    if missing_charts() or not contest.ranked:
        return []
    return [
        Chart(title, note, _svg(draw, contest, speeds))
        for title, note, draw, has_figures in KINDS
        if has_figures(contest, speeds)
    ]


def overview(contest: Contest, speeds: Speeds) -> bytes | None:
    """The first four charts side by side, as a PNG; None without matplotlib."""
    drawn = [(title, draw) for title, _, draw, has_figures in KINDS if has_figures(contest, speeds)][:IN_OVERVIEW]
    if missing_charts() or not contest.ranked or not drawn:
        return None
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(2 * INCHES[0], -(-len(drawn) // 2) * INCHES[1]), layout="constrained")
        for index, (title, draw) in enumerate(drawn, start=1):
            axes = figure.add_subplot(-(-len(drawn) // 2), 2, index)
            draw(axes, contest, speeds)
            axes.set_title(title, fontsize=10)
        file = BytesIO()
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    return file.getvalue()


def tasks_chart(contests: Sequence[Contest]) -> Chart | None:
    """The share of right answers of each model in each test of a task, as a heat map; None where there are none.

    Args:
        contests: On any data; those on tasks are drawn.
    """
    shares: dict[str, dict[str, float]] = {}
    labels: list[str] = []
    for contest in contests:
        for one in contest.ranked:
            for test, share in one.accuracies.items():
                shares.setdefault(f"{contest.data}, {test}", {})[one.label] = share
                labels += [] if one.label in labels else [one.label]
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


def _svg(draw: Draw, contest: Contest, speeds: Speeds) -> bytes:
    def drawn() -> "Figure":
        from matplotlib.figure import Figure

        figure = Figure(figsize=INCHES, layout="constrained")
        draw(figure.subplots(), contest, speeds)
        return figure

    return _as_svg(drawn)


def _as_svg(drawn: "Callable[[], Figure]") -> bytes:
    from matplotlib import rc_context

    with rc_context(STYLE):
        file = BytesIO()
        drawn().savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()

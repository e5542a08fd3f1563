"""Charts of results as PNG files, drawn by matplotlib. Without it, results appear in text tables only."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samout_train.evaluation.looks import looks_of
from samout_train.runtime import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from samout_train.evaluation.lengths import Extrapolation

DOTS_PER_INCH = 120
DARK = 0.6  # a cell above this share of the scale is dark enough for white figures


def missing_charts() -> str | None:
    """Return why charts cannot be drawn, and what to do; None if they can."""
    if importlib.util.find_spec("matplotlib") is None:
        return "no picture: matplotlib is not installed: pip install matplotlib, or samout_train[charts]"
    try:
        importlib.import_module("matplotlib.figure")
    except Exception as error:  # such as no writable folder, or an incompatible numpy
        reason = " ".join(str(error).split())[:200]
        return f"no picture: matplotlib cannot be used ({reason}): fix this, or install it again"
    return None


def draw_extrapolation(found: Mapping[str, "Extrapolation"], path: Path) -> bytes | None:
    """Draw the loss by position, the loss by length, and the growth of the states.

    Args:
        found: Results by the name to show.
        path: Path of the PNG file.

    Returns:
        The picture; None without matplotlib.

    Raises:
        OSError: if it cannot be written.
    """
    if missing_charts():
        return None
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    from samout_train.evaluation.lengths import FAR_TIMES  # late, since lengths imports this module

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    by_position, by_length, growth = figure.subplots(1, 3)
    looks = looks_of(found)
    for name, one in found.items():
        colour = looks[name].color
        middles, losses = [], []
        for first, last, nats in one.by_position:
            middles.append((first * last) ** 0.5)
            losses.append(nats)
        by_position.plot(middles, losses, marker=".", color=colour, label=name)
        by_length.plot(list(one.loss_nats), list(one.loss_nats.values()), marker="o", color=colour, label=name)
        for number, (layer, norms) in enumerate(one.state_norm.items()):
            shade = colormaps["viridis"](0.9 * number / max(1, len(one.state_norm) - 1))  # not the colour of any model
            tokens = [one.trained_length * (index + 1) for index in range(len(norms))]
            if len(found) > 1:
                layer = f"{name}, {layer}"
            if norms[0]:
                norms = [norm / norms[0] for norm in norms]
            growth.plot(tokens, norms, color=shade, label=layer)
        for axes in (by_position, by_length, growth):
            axes.axvline(one.trained_length, color="grey", linestyle=":", linewidth=1)
        by_length.axvline(FAR_TIMES * one.trained_length, color="grey", linestyle="--", linewidth=1)
    by_position.set(title="loss by position", xlabel="position (tokens)", ylabel="nats per token")
    by_length.set(title="loss by window length, same text", xlabel="window length (tokens)", ylabel="nats per token")
    growth.set(title="state norm, relative to the end of a training row", xlabel="position (tokens)")
    for axes in (by_position, by_length, growth):
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8)
        else:
            axes.text(0.5, 0.5, "no state of fixed size", ha="center", transform=axes.transAxes)
    figure.suptitle(f"dotted: training length; dashed: {FAR_TIMES} times that", fontsize=9, color="grey")
    return _written(figure, path)


def draw_search(trials: Sequence[tuple[int, str, float | None]], *, path: Path) -> bytes | None:
    """Draw the loss of each trial of a search, and the best loss so far.

    Args:
        trials: Number, state (`done` or `pruned`) and loss of each trial, in order.
        path: Path of the PNG file.

    Returns:
        The picture; None without matplotlib.

    Raises:
        OSError: if it cannot be written.
    """
    if missing_charts():
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    numbers: dict[str, list[int]] = {"done": [], "pruned": []}
    losses: dict[str, list[float]] = {"done": [], "pruned": []}
    for number, state, loss in trials:
        if state in numbers and loss is not None:
            numbers[state].append(number)
            losses[state].append(loss)
    for state, marker, colour in (("done", "o", "tab:blue"), ("pruned", "x", "tab:grey")):
        if numbers[state]:
            axes.plot(numbers[state], losses[state], marker, color=colour, linestyle="none", label=state)
    lowest = list(accumulate(losses["done"], min))
    axes.step(numbers["done"], lowest, where="post", color="tab:orange", label="best so far")
    axes.set(title="validation loss by trial", xlabel="trial", ylabel="nats per token")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _written(figure, path)


def heat_map(
    shares: Sequence[Sequence[float | None]], *, rows: Sequence[str], columns: Sequence[str], title: str
) -> "Figure":
    """Return a matplotlib figure with a coloured table of shares. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 0.62 * len(columns), 1.9 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(np.array(shares, dtype=float), vmin=0, vmax=1, cmap="Blues", aspect="auto")  # None is NaN
    for y, row in enumerate(shares):
        for x, share in enumerate(row):
            if share is None:
                continue
            colour = "white" if share > DARK else "black"
            axes.text(x, y, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def _written(figure: "Figure", path: Path) -> bytes:
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=DOTS_PER_INCH)
    picture = drawn.getvalue()
    replace_file(path, lambda file: file.write(picture))
    return picture

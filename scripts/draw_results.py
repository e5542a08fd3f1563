"""Draw the pictures of measured results again, from the JSON files next to them, without measuring.

python scripts/draw_results.py [--folder docs/img]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import bench_decode
import bench_scan
import bench_train
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from samout_train.evaluation import DOTS_PER_INCH, LOOKS, heat_map

NANOGPT = 1.470  # nats per character, as published
LABEL_SIDE = {"maxplus": "right", "transformer": "center"}  # of the label at the lowest point, clear of curves


def draw_shakespeare(content: dict[str, Any], path: Path) -> None:
    """Draw validation and training losses by step, and the lowest losses enlarged."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    whole, lowest = figure.subplots(1, 2)
    for name, result in content["results"].items():
        colour = LOOKS[name].color
        validation = _by_step(result["val loss nats by step"])
        for axes in (whole, lowest):
            axes.plot(*validation, marker=".", color=colour, label=f"{name}, validation")
        training = _by_step(result["train loss nats by step"])
        whole.plot(*training, linestyle=":", color=colour, label=f"{name}, training")
        best, step = result["best_val_loss_nats"], result["best_val_step"]
        lowest.text(step, best - 0.02, f"{best:.3f}", color=colour, ha=LABEL_SIDE[name])
    lowest.axhline(NANOGPT, color="grey", linestyle="--", linewidth=1, label="nanoGPT, as published")
    whole.set(title="validation and training", ylim=(0, None))
    lowest.set(title="the lowest losses", xlim=(0, 2100), ylim=(1.38, 1.8))
    for axes in (whole, lowest):
        axes.set(xlabel="step", ylabel="nats per character")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    figure.suptitle(f"{content['setting'].split(', lr')[0]}, one seed each, {content['hardware']}")
    figure.savefig(path, dpi=110)


def draw_maxplus(content: dict[str, Any], path: Path) -> None:
    """Draw the losses of each form: of each learning rate after 500 steps, and of each seed after 2,000."""
    figure = Figure(figsize=(9, 11), layout="constrained")
    axes = figure.subplots()
    short, long = content["500 steps, by learning rate"], content["2,000 steps, of each seed"]
    for row, (name, losses) in enumerate(short.items()):
        colour = LOOKS[_model_of_form(name)].color
        axes.plot(list(losses.values()), [row] * len(losses), "o", color=colour, markerfacecolor="none", alpha=0.7)
        axes.plot(min(losses.values()), row, "o", color=colour)
        if name in long:
            axes.plot(long[name], [row] * len(long[name]), "D", color=colour, markerfacecolor="none", alpha=0.7)
            axes.plot(sum(long[name]) / len(long[name]), row, "|", color=colour, markersize=16, markeredgewidth=2.5)
    axes.set_yticks(range(len(short)), list(short))
    axes.invert_yaxis()
    axes.set(title="validation loss", xlabel="nats per character")
    axes.grid(alpha=0.3)
    circle, filled, diamond = ({"color": "grey", "marker": marker, "linestyle": "none"} for marker in "ooD")
    handles = [
        Line2D([], [], label="500 steps, each learning rate", markerfacecolor="none", **circle),
        Line2D([], [], label="500 steps, the best rate", **filled),
        Line2D([], [], label="2,000 steps, each seed and their mean", markerfacecolor="none", **diamond),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(path, dpi=110)


def _model_of_form(name: str) -> str:
    model = name.split(",")[0].lower()
    if model in ("all ingredients", "all", "simple"):
        return "maxplus"
    return model


def draw_capabilities(content: dict[str, Any], path: Path) -> None:
    """Draw the accuracy of every model in every test."""
    shares = content["accuracy"]
    models = list(next(iter(shares.values())))
    cells = [list(row.values()) for row in shares.values()]
    figure = heat_map(cells, rows=list(shares), columns=models, title="accuracy, with chance in brackets")
    figure.savefig(path, dpi=DOTS_PER_INCH)


def draw_counting(content: dict[str, Any], path: Path) -> None:
    """Draw each model's share of right last answers by row length, in a panel for each task."""
    figure = Figure(figsize=(13, 7), layout="constrained")
    tasks = content["right last answers by length"]
    lines: dict[str, Line2D] = {}
    *panels, of_legend = figure.subplots(2, 3).flat
    of_legend.set_axis_off()
    for axes, (task, shares) in zip(panels, tasks.items(), strict=True):
        for number, (model, by_length) in enumerate(shares.items()):
            width = max(1.5, 5 - 3 * number)  # so that overlapping lines stay visible
            drawn = axes.plot(*_by_step(by_length), marker=".", color=LOOKS[model].color, linewidth=width)
            lines.setdefault(model, drawn[0])
        axes.set(title=task, xscale="log", ylim=(-0.04, 1.04), xlabel="length of a row", ylabel="right last answers")
        axes.grid(alpha=0.3)
    of_legend.legend(list(lines.values()), list(lines), loc="center")
    figure.suptitle(f"one layer, {content['hardware']}, {content['date']}")
    figure.savefig(path, dpi=110)


def _by_step(losses: dict[str, float]) -> tuple[list[int], list[float]]:
    return [int(step) for step in losses], list(losses.values())


def _with_numbers(series: dict[str, dict[str, float]]) -> dict[str, dict[int, float]]:
    return {name: {int(place): value for place, value in values.items()} for name, values in series.items()}


def main() -> None:
    """Draw every picture again."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--folder", type=Path, default=Path("docs/img"))
    folder = arguments.parse_args().folder
    scan, train, decode, shakespeare, maxplus, capabilities, counting = [
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("scan", "train", "decode", "shakespeare_h200", "maxplus", "capabilities", "counting")
    ]
    title = f"running-maximum mixers, {scan['hardware']}, {scan['versions'].split(', ')[0]}"
    bench_scan.draw(scan["results"], title, folder / "scan.png")
    title = f"training, {train['hardware']}, {train['versions'].split(', ')[0]}"
    bench_train.draw(train["steps"], _with_numbers(train["tokens a second"]), title, folder / "train.png")
    title = f"decoding, 6.3 M parameters, {decode['hardware']}, torch {decode['torch']}"
    places = _with_numbers(decode["seconds a token by place"])
    bench_decode.draw(places, _with_numbers(decode["tokens a second by batch"]), title, folder / "decode.png")
    draw_shakespeare(shakespeare, folder / "shakespeare_h200.png")
    draw_maxplus(maxplus, folder / "maxplus.png")
    draw_capabilities(capabilities, folder / "capabilities.png")
    draw_counting(counting, folder / "counting.png")


if __name__ == "__main__":
    main()

"""Draw the pictures of measured results from the figures in the JSON files beside them, without measuring.

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

from samout_train.evaluation import LOOKS

NANOGPT = 1.470  # nats per character, as published


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
        lowest.text(step, best - 0.02, f"{best:.3f}", color=colour, ha="center")
    lowest.axhline(NANOGPT, color="grey", linestyle="--", linewidth=1, label="nanoGPT, as published")
    whole.set(title="validation and training", ylim=(0, None))
    lowest.set(title="the lowest losses", xlim=(0, 2100), ylim=(1.38, 1.8))
    for axes in (whole, lowest):
        axes.set(xlabel="step", ylabel="nats per character")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    figure.suptitle(f"{content['setting'].split(', lr')[0]}, one seed each, {content['hardware']}")
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
    scan, train, decode, shakespeare = [
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("scan", "train", "decode", "shakespeare_h200")
    ]
    title = f"running-maximum mixers, {scan['hardware']}, {scan['versions'].split(', ')[0]}"
    bench_scan.draw(scan["results"], title, folder / "scan.png")
    title = f"training, {train['hardware']}, {train['versions'].split(', ')[0]}"
    bench_train.draw(train["steps"], _with_numbers(train["tokens a second"]), title, folder / "train.png")
    title = f"decoding, 6.3 M parameters, {decode['hardware']}, torch {decode['torch']}"
    places = _with_numbers(decode["seconds a token by place"])
    bench_decode.draw(places, _with_numbers(decode["tokens a second by batch"]), title, folder / "decode.png")
    draw_shakespeare(shakespeare, folder / "shakespeare_h200.png")


if __name__ == "__main__":
    main()

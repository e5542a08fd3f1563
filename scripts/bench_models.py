"""Measure training tokens per second by length, for every model of a comparison and some further models.

    python scripts/bench_models.py [--experiment contenders_cpu] [--length 256] [--out docs/img/models.png]

Medians of a forward and a backward pass over equally many tokens, at 1, 4, 16 and 32 times the length. The models have
equally many parameters and take turns in one process. Prints a table with speeds relative to the modern Transformer,
draws it, and writes the figures as JSON next to the picture. Nothing else may run meanwhile.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from omegaconf import OmegaConf
from tqdm import tqdm

from samout_train.config import build
from samout_train.evaluation import looks_of
from samout_train.experiments.compare import speed
from samout_train.experiments.compare.axes import log_of
from samout_train.experiments.compare.candidates import candidates
from samout_train.experiments.compare.matching import Budget
from samout_train.models import choose_products, product_of
from samout_train.ops import use_kernels, use_products
from samout_train.runtime import use_device

TIMES = (1, 4, 16, 32)  # of the length
BESIDE = "transformer_modern"
# Models that the experiments do not compare.
FURTHER = {
    "retnet": ["model=retnet"],
    "deltanet": ["model=deltanet"],
    "counting": ["model=counting", "model.num_layers=2"],
    "gru": ["model=gru", "model.num_layers=2"],
    "transformer": ["model=transformer"],
}


def main() -> None:
    """Measures, prints, draws, writes."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--experiment", default="contenders_cpu")
    arguments.add_argument("--length", type=int, default=256)
    arguments.add_argument("--models", nargs="*", help="labels of the experiment, or of FURTHER; all without it")
    arguments.add_argument("--out", type=Path, default=Path("docs/img/models.png"))
    given = arguments.parse_args()
    content = OmegaConf.to_container(OmegaConf.load(f"conf/experiment/{given.experiment}.yaml"))
    assert isinstance(content, dict)
    asked = content["compare"]["models"] | FURTHER
    if given.models:
        asked = {label: asked[label] for label in given.models}
    shared = [f"experiment={given.experiment}", f"data.seq_len={given.length}", "data.batch_size=1"]
    found = candidates(asked, shared, Budget.of(content["compare"]["match"]))
    load = os.getloadavg()[0]
    device = use_device("cpu", None)
    use_kernels("auto")
    models = {one.label: build(one.config["model"], vocab_size=256, pad_id=3) for one in found}
    product = product_of(next(iter(models.values())), TIMES[-1] * given.length)
    use_products(choose_products(product, device=device, precision="fp32", decodes=False))
    speed.TIMES = TIMES
    with tqdm(total=len(models) * len(TIMES), desc="lengths") as bar:
        speeds = speed.tokens_per_second(
            models,
            vocab_size=256,
            seq_len=given.length,
            batch_size=1,
            device=device,
            precision="fp32",
            after_each=bar.update,
        )
    lengths = list(speeds[BESIDE]) if BESIDE in speeds else [times * given.length for times in TIMES]
    print(f"{'tokens per second':28}" + "".join(f"{length:>16,}" for length in lengths))
    for label, by_length in speeds.items():
        beside = speeds.get(BESIDE, {})
        cells = [f"{by_length[n]:9,.0f} ({by_length[n] / beside[n]:.2f})" if n in beside else "" for n in lengths]
        print(f"{label:28}" + "".join(f"{cell:>16}" for cell in cells))
    hardware = f"{torch.get_num_threads()} CPU threads"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    content = {"date": time.strftime("%Y-%m-%d"), "hardware": hardware, "versions": versions, "load at the start": load}
    given.out.with_suffix(".json").write_text(json.dumps(content | {"tokens a second": speeds}, indent=1) + "\n")
    draw(speeds, f"training, about 800,000 parameters, {hardware}, torch {torch.__version__}", given.out)
    print(f"{hardware}, {versions}, load {load:.1f} at the start; drawn to {given.out}")


def draw(speeds: dict[str, dict[int, float]], title: str, path: Path) -> None:
    """Draw tokens per second by length as lines, with the legend at the side."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    looks = looks_of(speeds)
    for label in sorted(speeds, key=lambda label: -list(speeds[label].values())[-1]):
        axes.plot(list(speeds[label]), list(speeds[label].values()), label=label, **looks[label]._asdict())
    log_of(axes, set().union(*speeds.values()))
    axes.set(yscale="log", xlabel="sequence length, tokens", ylabel="tokens per second", title=title)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()

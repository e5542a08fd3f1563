"""What a training step of the forms of an ablation costs: milliseconds, and as a share of the first one's.

Blocks of steps take turns in one process; medians. Nothing else may run meanwhile.

    python scripts/bench_forms.py --data tinyshakespeare.txt maxplus transformer gru lstm [--rounds 15]
"""

import argparse
import platform
import statistics
import time
from datetime import date

import torch

from samout_train import build_trainer
from samout_train.config import compose_config
from samout_train.experiments import Stages
from samout_train.runtime import device_name

STEPS_IN_A_BLOCK = 5


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("forms", nargs="+", help="names of forms; the first one is what the others are compared with")
    parser.add_argument("--experiment", default="maxplus_ablation")
    parser.add_argument("--data", required=True, help="a copy of tiny Shakespeare")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    experiment = f"experiment={given.experiment}"
    settings = compose_config([experiment]).stages
    assert settings is not None, f"{experiment} is no sweep over forms"
    forms = Stages(**settings).forms
    common = [experiment, f"data.path={given.data}", f"device={given.device}"]
    trainers = {name: build_trainer([*common, *forms[name]]) for name in given.forms}
    milliseconds: dict[str, list[float]] = {name: [] for name in trainers}
    for round_index in range(given.rounds + 1):  # the first one is for warming up
        for name, trainer in trainers.items():
            start = time.perf_counter()
            for _ in range(STEPS_IN_A_BLOCK):
                loss = trainer.step()
            float(loss)
            if round_index:
                milliseconds[name].append(1000 * (time.perf_counter() - start) / STEPS_IN_A_BLOCK)
    device = device_name(trainers[given.forms[0]].device)
    print(f"{date.today()}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}", end="")
    print(f", Python {platform.python_version()}")
    base = statistics.median(milliseconds[given.forms[0]])
    for name, times in milliseconds.items():
        size = sum(parameter.numel() for parameter in trainers[name].model.parameters())
        middle = statistics.median(times)
        print(f"{name:30} {size:10,}  {middle:7.1f} ms a step  {middle / base:5.2f} times {given.forms[0]}")


if __name__ == "__main__":
    main()

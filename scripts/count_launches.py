"""Count the operations that launch a kernel in a training step on CUDA, without a GPU.

    python scripts/count_launches.py [--all] [--model NAME]

Each line is a step: the number of operations that launch a kernel, and how many of them are casts. --all adds the
count of each operation. --model counts that model in the width, depth and batch of the V8 of 127 M. On a device with
flash attention, attention is one kernel; here its parts are counted (3 to 5 products, and the operations between them,
per layer). A step runs on fake tensors and computes nothing, so 127 M parameters and 131,072 tokens take seconds. Views
and allocations are not counted; an operator of this project counts as one. The published program has 343.
"""

import argparse
import json
from collections import Counter
from typing import Any

from fake_cuda import DEVICE, Operations, faking, on_fake_device  # before torch

import torch
from torch import nn

from samout_train import build_model
from samout_train.data import Batch, Batches
from samout_train.models import ParallelModel
from samout_train.training.optimizers.adam import adam
from samout_train.training.optimizers.adamw import adamw
from samout_train.training.cuda_graph import Results, StepInputs
from samout_train.training.schedules import Constant, Cosine, Limits
from samout_train.training.step import TrainingStep

PUBLISHED: dict[str, Any] = {"model": "v8", "rows": 100, "length": 49, "ids": 128}
LARGE: dict[str, Any] = {
    "model": "v8",
    "rows": 128,
    "length": 1024,
    "ids": 50_304,
    "sizes": {"hidden_size": 768, "num_heads": 12, "num_layers": 12},
}
STEPS = {"published V8": PUBLISHED, "V8 of 127 M": LARGE}
for model in ("maxplus", "transformer_modern"):
    STEPS[f"two layers of {model}"] = LARGE | {"model": model, "sizes": LARGE["sizes"] | {"num_layers": 2}}


class FakeRows:
    """Split rows into inputs and targets."""

    @staticmethod
    def split(ids_RT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets."""
        return ids_RT[:, :-1], ids_RT[:, 1:]


class FakeBatches:
    """Batches with the same ids in every step, on the fake device."""

    device = DEVICE
    ignore_index = 3
    rows = FakeRows
    document_id = None
    parts = Batches.parts

    def __init__(self, ids_RT: torch.Tensor, *, varying: bool = False) -> None:
        self.ids_RT = ids_RT
        self.targets = ids_RT.numel() - len(ids_RT)
        self.varying = varying

    def get(self, step: int) -> Batch:
        """Return the batch; if `varying`, each has one counted target less than the one before."""
        targets = self.targets - step * self.varying
        return Batch(self.ids_RT, targets, targets)

    def prepare(self, step: int) -> None:
        """Do nothing: there is one batch."""


def contract_of(model: str, *, precision: str, sizes: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """Return the operations in the device part of a step that a CUDA graph could not contain.

    The learning rate and the number of counted targets differ between the two steps that are compared: in a graph, an
    operation would keep any number that depends on them.

    Args:
        model: Name of a YAML in conf/model.
        precision: Precision of the passes.
        sizes: Settings of the model.
        settings: Settings of the step.
    """
    with torch.device("meta"):
        net = build_model(model, vocab_size=61, **(sizes or {}))
    parts: list[Operations] = []
    with faking():
        step = step_of(on_fake_device(net).train(), 4, 12, precision=precision, varying=True, **settings)

        def recorded(inputs: StepInputs) -> Results:
            with Operations() as operations:
                results = step._device_step(inputs)
            parts.append(operations)
            return results

        step.graph = recorded  # type: ignore[assignment]
        for _ in range(3):
            step(Limits(10, None).progress(step.step_count + 1, 0.0))
    _, first, second = parts
    differs = [one[0] for one, other in zip(first.all, second.all, strict=False) if one != other]
    if len(first.all) != len(second.all):
        differs.append(f"{len(first.all)} operations, then {len(second.all)}")
    return {"waits": first.waits + second.waits, "crossings": first.crossings, "differs": differs}


def step_of(
    net: nn.Module,
    rows: int,
    length: int,
    *,
    precision: str,
    clip: float | None = None,
    accumulate: int = 1,
    chunk_len: int | None = None,
    varying: bool = False,
) -> TrainingStep:
    """Return a step of a model on the fake device; called inside `faking`.

    Args:
        varying: Whether the learning rate and the number of counted targets change from step to step.
    """
    build = adam if clip is None else adamw
    extra: dict[str, Any] = {"betas": (0.9, 0.999)} if clip is None else {"betas": (0.9, 0.99), "weight_decay": 0.1}
    ids_RT = torch.empty((rows, length + 1), dtype=torch.int64, device=DEVICE)
    return TrainingStep(
        shared=ParallelModel(net, parallel="ddp", device=DEVICE, compile=False),
        optimizer=build(net, lr=1e-3, eps=1e-8, **extra),
        schedule=Cosine(warmup_steps=0, final_share=0.1) if varying else Constant(),
        batches=FakeBatches(ids_RT, varying=varying),  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        accumulate=accumulate,
        chunk_len=chunk_len,
        clip_grad_norm=clip,
        compile=False,
        on_non_finite="stop",
        vocabulary=None,
    )


def operations_of(
    model: str,
    rows: int,
    length: int,
    ids: int,
    *,
    precision: str,
    sizes: dict[str, Any] | None = None,
    clip: float | None = None,
    accumulate: int = 1,
) -> list[Operations]:
    """Return the operations of two steps after the first step, which creates the optimizer's state."""
    with torch.device("meta"):  # its weights are never drawn
        net = build_model(model, vocab_size=ids, **(sizes or {}))
    with faking():
        step = step_of(on_fake_device(net).train(), rows, length, precision=precision, clip=clip, accumulate=accumulate)
        progress = Limits(10, None).progress(1, 0.0)
        step(progress)
        found = []
        for _ in range(2):
            with Operations() as operations:
                step(progress)
            found.append(operations)
    return found


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="the count of each operation, too")
    parser.add_argument("--model", help="count a step of this model alone")
    parser.add_argument("--json", action="store_true", help="counts, waits and whether two steps are alike, as JSON")
    parser.add_argument("--contract", help="models and settings as JSON: what a CUDA graph could not have of each")
    arguments = parser.parse_args()
    if arguments.contract is not None:
        print(json.dumps({name: contract_of(**settings) for name, settings in json.loads(arguments.contract).items()}))
        return
    found: dict[str, dict[str, Any]] = {}
    steps = STEPS
    if arguments.model is not None:
        steps = {arguments.model: LARGE | {"model": arguments.model}}
    for title, settings in steps.items():
        for precision in ("fp32", "bf16"):
            first, second = operations_of(**settings, precision=precision)
            launches = Counter(first.launches)
            found[f"{title}, {precision}"] = {
                "launches": launches.total(),
                "casts": launches["_to_copy"],
                "waits": first.waits + second.waits,
                "alike": first.all == second.all,
                "operations": dict(launches.most_common()),
            }
    if arguments.json:
        print(json.dumps(found))
        return
    for name, step in found.items():
        print(f"{name}: {step['launches']} operations that launch, {step['casts']} of them casts")
        if arguments.all:
            for operation, count in step["operations"].items():
                print(f"  {count:5} {operation}")


if __name__ == "__main__":
    main()

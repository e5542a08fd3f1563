"""Run directories with the figures that a test wants."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from samout_train.experiments import Plan, record_failure
from samout_train.experiments.compare.plan import stages
from samout_train.experiments.compare.record import Entry
from samout_train.experiments.compare.results import Comparison, comparisons_of
from samout_train.experiments.compare.runs import read_run


def make_run(
    folder: Path,
    label: str,
    rate: float,
    seed: int,
    loss: float | None,
    *,
    data: str = "shakespeare",
    model: Mapping[str, Any] | None = None,
    error: str | None = None,
    **summary: Any,
) -> Path:
    """A run that came to a loss; with `error` one that failed, and with neither one that was stopped."""
    run_dir = folder / f"{label}-lr{rate:g}-seed{seed}"
    (run_dir / ".hydra").mkdir(parents=True)
    config = {
        "seed": seed,
        "precision": "fp32",
        "model": {"_target_": f"package.{label}", "hidden_size": 8, **(model or {})},
        "data": {"_target_": f"package.{data}", "seq_len": 64, "batch_size": 12},
        "optimizer": {"lr": rate, "weight_decay": 0.1},
        "schedule": {"_target_": "package.Cosine"},
        "trainer": {"clip_grad_norm": 1.0},
        "run_dir": "${hydra:run.dir}",
    }
    (run_dir / ".hydra" / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    steps = (10, 20, 30, 40)
    metrics = [{"step": step, "val/loss_nats": (loss or 4.0) + 1 / step} for step in steps]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics) + '{"step": 5')
    if error is not None:
        record_failure(run_dir, error)
    elif loss is not None:
        figures = {
            "model": label,
            "data": data,
            "parameters": 800_000,
            "training_flops_per_token": 4_800_000,
            "state_bytes": 2_688,
            "steps": 40,
            "tokens_seen": 30_720,
            "val_loss_nats": loss,
            "tokens_per_second": 14_000.0,
            "train_seconds": 2.2,
            "device": "cpu",
            "torch": "2.13.0",
            "seed": seed,
            "commit": "abc",
            "leak": None,
            "weights_sha256": "0",
            "lengths": {"loss_nats": {"64": loss, "256": loss + 0.1, "1024": loss + 0.3}},
        }
        (run_dir / "summary.json").write_text(json.dumps(figures | summary))
    return run_dir


def make_comparison(folder: Path, losses: Mapping[str, Sequence[float]], **summary: Any) -> Comparison:
    """Of models that were tried with rates 0.001, 0.003 and 0.01 on seed 0, the middle one being the best.

    Args:
        folder: Where the runs go.
        losses: By label, of seeds 1, 2 and so on.
        **summary: Figures of all of them.
    """
    run_dirs = []
    for label, of_seeds in losses.items():
        for rate, worse in ((1e-3, 0.2), (3e-3, 0.1), (1e-2, 0.3)):
            run_dirs.append(make_run(folder, label, rate, 0, of_seeds[0] + worse, **summary))
        for seed, loss in enumerate(of_seeds, start=1):
            run_dirs.append(make_run(folder, label, 3e-3, seed, loss, **summary))
    return comparisons_of([read_run(run_dir) for run_dir in run_dirs])[0]


def make_stages(
    asked: Plan, loss_of: Callable[[Entry], float | None], not_causal: Collection[str] = ()
) -> list[list[str]]:
    """Make the runs of all stages of a plan, as far as they are missing, and return their names by stage."""
    names = []
    for stage in stages(asked):
        asked.record(stage.entries, stage.record)
        for name, entry in stage.entries.items():
            (asked.folder / name).mkdir(exist_ok=True, parents=True)
            if (loss := loss_of(entry)) is not None:
                leak = {"place": 1, "position": 0} if entry.label in not_causal else None
                text = json.dumps({"weights_sha256": "0", "val_loss_nats": loss, "leak": leak})
                (asked.folder / name / "summary.json").write_text(text)
        names.append(list(stage.entries))
    return names

"""The hooks of a callback, and what it is told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from samout_train.data import Source
from samout_train.evaluation import Evaluator
from samout_train.runtime import PrecisionName
from samout_train.training.limits import Reached


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What is known before step 1.

    Args:
        model_name: Of the YAML in conf/model.
        data_name: Of the YAML in conf/data.
        seed: Of everything random.
        model: The model on its device.
        source: The data.
        evaluator: Measures the model on the data as training reads it.
        fixed_batches: What evaluations during training see: (R, T + 1) ids each, in ordinary memory.
        run_dir: Where the run lies.
        device: Where it runs.
        precision: Of the forward pass.
        batch_size: Rows in an optimizer step.
        accumulate: Micro-steps in one.
        chunk_len: Targets of a row that are learned at a time; None for all.
        processes: How many make the run; the first alone has callbacks.
        first_step: Steps already made: above 0 where a run is continued.
        reported_step: The last of them that counts as reported; what was written of later ones is made again.
        total_steps: The last step; None where only time limits the run.
        config_text: The composed configuration as YAML.
        settings: What tells runs apart: names of parts and scalar values by dotted key.
        command: The command line that repeats the run, without a run directory.
        parts: What a continued run has changed on its way, so that its command does not repeat it: one text a change.
        commit: Of the code; None where it is not known.
        max_seconds: Of training; None where only steps limit the run.
        steps_left_out: Says how many of the steps made so far changed nothing.
        limits_reached: Gives the limits that hold when it is called.
    """

    model_name: str
    data_name: str
    seed: int
    model: nn.Module
    source: Source
    evaluator: Evaluator
    fixed_batches: Sequence[Tensor]
    run_dir: Path
    device: torch.device
    precision: PrecisionName
    batch_size: int
    accumulate: int
    chunk_len: int | None
    processes: int
    first_step: int
    reported_step: int
    total_steps: int | None
    config_text: str
    settings: dict[str, bool | int | float | str]
    command: str
    parts: Sequence[str]
    commit: str | None
    max_seconds: float | None
    steps_left_out: Callable[[], int]
    limits_reached: Callable[[], Sequence[Reached]]


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a step has to say.

    Args:
        step: Steps made.
        metrics: By TensorBoard tag, such as `train/loss_nats`.
    """

    step: int
    metrics: dict[str, float]


class Callback(Protocol):
    """Override what is needed; each hook does nothing by itself. Called in the order of the configuration."""

    def check(self, context: RunContext) -> None:
        """Before anything is written: raises ValueError for what cannot work."""

    def on_start(self, context: RunContext) -> None:
        """Before the first step."""

    def on_step(self, step: int) -> None:
        """After each step. Asking the device for a value here would slow down every step."""

    def on_evaluate(self, step: int, *, is_last: bool, check_stop: Callable[[], None]) -> dict[str, float]:
        """After each evaluation on the fixed batches, and at the end of the run, before the report of this step.

        What it measures must leave the model, its mode and the random states as they were.

        Args:
            step: Steps made.
            is_last: Whether the run ends here; true once. The step may have been evaluated before.
            check_stop: To be called now and then by what takes long; what it raises ends the run.

        Returns:
            Figures by TensorBoard tag: they join the report, which all callbacks get.
        """
        return {}

    def figures(self) -> dict[str, Any]:
        """Before on_end: what joins `summary.json`, by key."""
        return {}

    def on_report(self, report: StepReport) -> str | None:
        """After a step that is logged (loss, learning rate, gradient norm, speed, memory) or evaluated on the fixed
        batches (`val/` tags), or both.

        Returns:
            Why the run should stop now; None to go on.
        """
        return None

    def limit_reached(self) -> Reached | None:
        """Return what of its settings has ended the run, with the setting that lets it go on; None for nothing.

        Keys are those of the callback itself, such as `patience`.
        """
        return None

    def on_end(self, summary: dict[str, Any]) -> None:
        """After the last step, with the content of `summary.json`."""

    def on_stop(self, reason: str) -> None:
        """After a signal, in place of on_end; the checkpoint to continue from is written."""

    def on_close(self) -> None:
        """Always, also after an error: close what is open."""

    def state_dict(self) -> dict[str, Any]:
        """What a continued run needs: numbers, text, lists and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what a checkpoint holds."""

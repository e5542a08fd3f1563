"""The hooks of a callback, and the objects that they receive."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from samout_train.data import Source
from samout_train.evaluation import Evaluator
from samout_train.runtime import PrecisionName, distributed
from samout_train.training.limits import Reached

if TYPE_CHECKING:
    from samout_train.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """A run before its first step: the trainer, and facts that the trainer does not hold.

    Args:
        trainer: The trainer, already at the step from which the run resumes.
        callbacks: All callbacks of the run, by name; empty in all processes but the first.
        run_dir: The run directory.
        model_name: Name of the YAML in conf/model.
        data_name: Name of the YAML in conf/data.
        config_text: The composed configuration as YAML.
        settings: Hyperparameters: names of the chosen options, and scalar values by dotted key.
        command: The command line that repeats the run, without a run directory.
        parts: Settings that a resumed run changed, one text each. If there are any, `command` alone does not repeat it.
        commit: The commit of the code; None if unknown.
        first_step: Steps made before this start: above 0 in a resumed run.
        reported_step: The last of these steps with a report. Reports of later steps are written again.
    """

    trainer: "Trainer"
    callbacks: Mapping[str, "Callback"]
    run_dir: Path
    model_name: str
    data_name: str
    config_text: str
    settings: dict[str, bool | int | float | str]
    command: str
    parts: Sequence[str]
    commit: str | None
    first_step: int
    reported_step: int

    @property
    def model(self) -> nn.Module:
        """Return the model on its device."""
        return self.trainer.model

    @property
    def source(self) -> Source:
        """Return the data."""
        return self.trainer.source

    @property
    def evaluator(self) -> Evaluator:
        """Return the evaluator of the current weights."""
        return self.trainer.evaluator

    @property
    def fixed_batches(self) -> Sequence[Tensor]:
        """Return the batches of evaluations during training: (R, T + 1) ids each, in pageable memory."""
        return self.trainer.reports.fixed_batches

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return self.trainer.device

    @property
    def precision(self) -> PrecisionName:
        """Return the precision of the forward pass."""
        return self.trainer.precision

    @property
    def seed(self) -> int:
        """Return the seed of everything random."""
        return self.trainer.training_step.batches.seed

    @property
    def batch_size(self) -> int:
        """Return the rows in an optimizer step."""
        return self.trainer.training_step.batches.batch_size

    @property
    def accumulate(self) -> int:
        """Return the micro-steps in an optimizer step."""
        return self.trainer.training_step.accumulate

    @property
    def chunk_len(self) -> int | None:
        """Return the targets of a row per forward and backward pass; None for all."""
        return self.trainer.training_step.chunk_len

    @property
    def processes(self) -> int:
        """Return the number of processes of the run."""
        return distributed.count()

    @property
    def total_steps(self) -> int | None:
        """Return the last step; None if only time limits the run."""
        return self.trainer.limits.total_steps

    @property
    def max_seconds(self) -> float | None:
        """Return the seconds of training; None if only steps limit the run."""
        return self.trainer.limits.max_seconds

    @property
    def verbose(self) -> bool:
        """Return whether callbacks print everything: `callbacks.report.verbose`, or true without that callback."""
        return bool(getattr(self.callbacks.get("report"), "verbose", True))

    def steps_left_out(self) -> int:
        """Return the number of steps so far that were skipped."""
        return self.trainer.training_step.steps_left_out()

    def limits_reached(self) -> list[Reached]:
        """Return the limits of the trainer and of callbacks that are reached now."""
        reached = self.trainer.limits_reached()
        for name, callback in self.callbacks.items():
            limit = callback.limit_reached()
            if limit is not None:
                place = f"callbacks.{name}."
                reached.append(Reached(place + limit.key, limit.value, place + limit.further))
        return reached


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The report of a step.

    Args:
        step: Steps made so far.
        metrics: Values by TensorBoard tag, such as `train/loss_nats`.
    """

    step: int
    metrics: dict[str, float]


class Callback(Protocol):
    """Base of callbacks: each hook does nothing by default. Callbacks are called in the order of the configuration."""

    def check(self, context: RunContext) -> None:
        """Raise ValueError for settings that cannot work; called before anything is written."""

    def on_start(self, context: RunContext) -> None:
        """Handle the start, called before the first step."""

    def on_step(self, step: int) -> None:
        """Handle a step, called after each one. Reading a value from the device here slows down every step."""

    def on_evaluate(self, step: int, *, is_last: bool, check_stop: Callable[[], None]) -> dict[str, float]:
        """Measure further values, called before the report of a step.

        Called after each evaluation on the fixed batches, and at the end of the run. The model, its mode and the random
        states must be left unchanged.

        Args:
            step: Steps made so far.
            is_last: Whether the run ends here; true once. The step may have been evaluated before.
            check_stop: Call it regularly during long measurements; its exception ends the run.

        Returns:
            Values by TensorBoard tag. They are added to the report, which all callbacks get.
        """
        return {}

    def figures(self) -> dict[str, Any]:
        """Return entries to add to `summary.json`, by key; called before `on_end`."""
        return {}

    def on_report(self, report: StepReport) -> str | None:
        """Handle a report, called after a step that is logged or evaluated, or both.

        A logged step has loss, learning rate, gradient norm, speed and memory; an evaluated one has `val/` tags.

        Returns:
            The reason to stop now; None to continue.
        """
        return None

    def limit_reached(self) -> Reached | None:
        """Return the setting of this callback that ended the run, and a value that lets it resume; None if none did.

        The key is relative to the callback, such as `patience`.
        """
        return None

    def on_end(self, summary: dict[str, Any]) -> None:
        """Handle the end, called after the last step with the content of `summary.json`."""

    def on_stop(self, reason: str) -> None:
        """Handle a signal, called instead of `on_end` once the checkpoint to resume from is written."""

    def on_close(self) -> None:
        """Close open files; always called last, also after an error."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs: numbers, text, lists and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state returned by `state_dict`."""

"""The hooks of a callback, and what it is told."""

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
    """A run before its first step: the trainer, and what cannot be read from it.

    Args:
        trainer: Built, and at the step from which the run is continued.
        callbacks: All of the run, by name; only the first of several processes has any.
        run_dir: Where the run lies.
        model_name: Of the YAML in conf/model.
        data_name: Of the YAML in conf/data.
        config_text: The composed configuration as YAML.
        settings: What tells runs apart: names of parts and scalar values by dotted key.
        command: The command line that repeats the run, without a run directory.
        parts: What a continued run has changed on its way, so that its command does not repeat it: one text a change.
        commit: Of the code; None where it is not known.
        first_step: Steps already made: above 0 where a run is continued.
        reported_step: The last of them that counts as reported; what was written of later ones is made again.
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
        """Return what measures the model as it is now."""
        return self.trainer.evaluator

    @property
    def fixed_batches(self) -> Sequence[Tensor]:
        """Return what evaluations during training see: (R, T + 1) ids each, in ordinary memory."""
        return self.trainer.reports.fixed_batches

    @property
    def device(self) -> torch.device:
        """Return where the model is."""
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
        """Return the targets of a row that are learned at a time; None for all."""
        return self.trainer.training_step.chunk_len

    @property
    def processes(self) -> int:
        """Return how many processes make the run."""
        return distributed.count()

    @property
    def total_steps(self) -> int | None:
        """Return the last step; None where only time limits the run."""
        return self.trainer.limits.total_steps

    @property
    def max_seconds(self) -> float | None:
        """Return the seconds of training; None where only steps limit the run."""
        return self.trainer.limits.max_seconds

    def steps_left_out(self) -> int:
        """Return how many of the steps made so far changed nothing."""
        return self.trainer.training_step.steps_left_out()

    def limits_reached(self) -> list[Reached]:
        """Return the limits that hold now: those of the trainer, and those of callbacks."""
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
        """Return the state that a resumed run needs: numbers, text, lists and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what a checkpoint holds."""

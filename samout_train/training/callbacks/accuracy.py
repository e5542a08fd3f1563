"""Measure the accuracy on a task: at the training length, and in its tests."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from samout_train.config import Positive, validated
from samout_train.data import Rows
from samout_train.evaluation import Accuracy, accuracy_lines, rows_that_fit
from samout_train.runtime import distributed
from samout_train.training.callbacks.base import Callback, RunContext, StepReport
from samout_train.training.limits import Reached

log = logging.getLogger(__name__)
VALIDATION = "validation"
SOLVED = 0.999


class TaskAccuracy(Callback):
    """Adds accuracies to reports, and all of them to `summary.json` as `accuracy`; does nothing on data without tasks.

    Each evaluation measures all validation rows; the last one also measures each test.

    Args:
        solved_evaluations: End the run after this many evaluations in a row with at least 99.9 % correct answers; None
            never ends it.
    """

    @validated
    def __init__(self, *, solved_evaluations: Annotated[int, Positive] | None) -> None:
        self.solved_evaluations = solved_evaluations
        self._found: dict[str, Accuracy] = {}
        self._validated_step: int | None = None
        self._num_solved = 0

    def on_start(self, context: RunContext) -> None:
        """Keep the run's context."""
        self._context = context

    def on_evaluate(self, step: int, *, is_last: bool, check_stop: Callable[[], None]) -> dict[str, float]:
        """Measure accuracy."""
        source = self._context.source
        metrics: dict[str, float] = {}
        if source.chance is None:
            return {}
        if self._validated_step != step:
            self._found = {VALIDATION: self._counted(source.validation, check_stop)}
            metrics["val/accuracy"] = self._found[VALIDATION].share
        if is_last:
            for name, rows in source.tests.items():
                self._found[name] = self._counted(rows, check_stop)
                metrics[f"val_accuracy/{name}"] = self._found[name].share
        return metrics

    def on_report(self, report: StepReport) -> str | None:
        """Count consecutive evaluations at which the task is solved."""
        share = report.metrics.get("val/accuracy")
        if share is None:
            return None
        self._validated_step = report.step  # set here, so that a run stopped before its report measures again
        if self.solved_evaluations is None:
            return None
        self._num_solved += 1
        if share < SOLVED:
            self._num_solved = 0
        if self._num_solved < self.solved_evaluations:
            return None
        return f"{share:.4f} of the answers were right, and {SOLVED} in {self._num_solved} evaluations in a row"

    def limit_reached(self) -> Reached | None:
        """Return the number of solved evaluations if it ended the run."""
        if self.solved_evaluations is None or self._num_solved < self.solved_evaluations:
            return None
        further = f"solved_evaluations={2 * self._num_solved}"
        return Reached("solved_evaluations", self.solved_evaluations, further)

    def figures(self) -> dict[str, Any]:
        """Return the last measurement, for `summary.json`."""
        if not self._found:
            return {}
        by_name = {name: found.figures() for name, found in self._found.items()}
        return {"accuracy": by_name, "chance": self._context.source.chance}

    def on_end(self, summary: dict[str, Any]) -> None:
        """Log a line for the validation rows and each test."""
        for line in accuracy_lines(self._found, self._context.source.chance):
            log.info("  %s", line)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        found = {name: [counted.right, counted.answers] for name, counted in self._found.items()}
        return {"found": found, "num_solved": self._num_solved, "validated_step": self._validated_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state returned by `state_dict`."""
        self._found = {name: Accuracy(*counts) for name, counts in state["found"].items()}
        self._num_solved, self._validated_step = state["num_solved"], state["validated_step"]

    def _counted(self, rows: Rows, check_stop: Callable[[], None]) -> Accuracy:
        context = self._context
        rows_of_pass = max(1, context.batch_size // context.accumulate // distributed.count())
        rows_per_batch = rows_that_fit(rows_of_pass, context.source.train, rows)
        return replace(context.evaluator, check_stop=check_stop).accuracy(rows, rows_per_batch)

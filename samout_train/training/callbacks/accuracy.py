"""Count the right answers of a task: at the length that is trained at, and in its tests."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from samout_train.config import Positive, validated
from samout_train.data import Rows
from samout_train.evaluation import Accuracy, accuracy_lines, rows_that_fit
from samout_train.training.callbacks.base import Callback, RunContext, StepReport

log = logging.getLogger(__name__)
VALIDATION = "validation"
SOLVED = 0.999


class TaskAccuracy(Callback):
    """Adds accuracies to reports, and all of them to `summary.json` as `accuracy`; on other data it does nothing.

    At each evaluation that of all validation rows; at the end that of each test, too.

    Args:
        solved_evaluations: After so many evaluations in a row with at least 99.9 % right the run ends; None for never.
    """

    @validated
    def __init__(self, *, solved_evaluations: Annotated[int, Positive] | None) -> None:
        self.solved_evaluations = solved_evaluations
        self._found: dict[str, Accuracy] = {}
        self._validated_step: int | None = None
        self._num_solved = 0

    def on_start(self, context: RunContext) -> None:
        """Keep what is evaluated."""
        self._context = context

    def on_evaluate(self, step: int, *, is_last: bool, check_stop: Callable[[], None]) -> dict[str, float]:
        """Count answers."""
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
        """Count evaluations at which the task is solved."""
        share = report.metrics.get("val/accuracy")
        if share is None:
            return None
        self._validated_step = report.step  # only now: a run that is stopped before measures again
        if self.solved_evaluations is None:
            return None
        self._num_solved += 1
        if share < SOLVED:
            self._num_solved = 0
        if self._num_solved < self.solved_evaluations:
            return None
        return f"{share:.4f} of the answers were right, and {SOLVED} in {self._num_solved} evaluations in a row"

    def figures(self) -> dict[str, Any]:
        """Return what was counted at the end, for `summary.json`."""
        if not self._found:
            return {}
        by_name = {name: found.figures() for name, found in self._found.items()}
        return {"accuracy": by_name, "chance": self._context.source.chance}

    def on_end(self, summary: dict[str, Any]) -> None:
        """Log a line for each test."""
        for line in accuracy_lines(self._found, self._context.source.chance):
            log.info("  %s", line)

    def state_dict(self) -> dict[str, Any]:
        """Return what a continued run needs."""
        found = {name: [counted.right, counted.answers] for name, counted in self._found.items()}
        return {"found": found, "num_solved": self._num_solved, "validated_step": self._validated_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what was counted last."""
        self._found = {name: Accuracy(*counts) for name, counts in state["found"].items()}
        self._num_solved, self._validated_step = state["num_solved"], state["validated_step"]

    def _counted(self, rows: Rows, check_stop: Callable[[], None]) -> Accuracy:
        context = self._context
        rows_per_batch = rows_that_fit(context.batch_size // context.accumulate, context.source.train, rows)
        return replace(context.evaluator, check_stop=check_stop).accuracy(rows, rows_per_batch)

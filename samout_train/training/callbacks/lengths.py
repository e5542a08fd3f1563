"""Measure the loss beyond the training length, at the end of a run on text."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from samout_train.config import Positive, validated
from samout_train.evaluation import PICTURE, Extrapolation, missing_charts, stream_of, write_extrapolation
from samout_train.models import sees_future
from samout_train.runtime import shown_path
from samout_train.training.callbacks.base import Callback, RunContext

log = logging.getLogger(__name__)


class Lengths(Callback):
    """Adds losses by length to the last report and to `summary.json` as `lengths`, and draws them.

    Requires that the validation split is one long text and that the model carries a state.

    Args:
        times: Lengths to measure, as multiples of the training length; empty to disable the measurement.
        most_tokens: Tokens of the validation text to read at each length; more if the longest length needs them.
    """

    @validated
    def __init__(self, *, times: list[Annotated[int, Positive]], most_tokens: Annotated[int, Positive]) -> None:
        self.times, self.most_tokens = times, most_tokens
        self._found: Extrapolation | None = None

    def on_start(self, context: RunContext) -> None:
        """Keep the run's context."""
        self._context = context

    def on_evaluate(self, step: int, *, is_last: bool, check_stop: Callable[[], None]) -> dict[str, float]:
        """Measure the losses at the end of the run."""
        context, rows = self._context, self._context.source.validation
        tokens = stream_of(rows)
        self._found = None  # a result from a checkpoint is outdated: the weights have changed
        if not is_last or not self.times or tokens is None or sees_future(context.model):
            return {}
        evaluator = replace(context.evaluator, check_stop=check_stop)
        lengths = [rows.seq_len * times for times in self.times]
        self._found = evaluator.by_length(tokens, lengths, self.most_tokens, trained_length=rows.seq_len)
        metrics = {}
        for length, nats in self._found.loss_nats.items():
            metrics[f"val_length/loss_nats/{length}_tokens"] = nats
        return metrics

    def figures(self) -> dict[str, Any]:
        """Return the losses by length, for `summary.json`."""
        if self._found is None:
            return {}
        return {"lengths": self._found.figures()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a run needs if it is stopped after the measurement."""
        if self._found is None:
            return {"found": None}
        return {"found": vars(self._found)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state returned by `state_dict`."""
        self._found = None
        if state["found"] is not None:
            self._found = Extrapolation(**state["found"])

    def on_end(self, summary: dict[str, Any]) -> None:
        """Log the losses and the verdict; write the picture, and the losses by position for TensorBoard."""
        if self._found is None or not self._found.loss_nats:
            return
        losses = [f"{nats:.3f} at {length:,}" for length, nats in self._found.loss_nats.items()]
        losses[0] += " tokens"
        log.info("lengths     %s", ", ".join(losses))
        verdict = self._found.verdict()
        if not self._context.verbose:
            verdict = verdict[:1]
        for line in verdict:
            log.info("            %s", line)
        folder = self._context.run_dir / "evaluate" / self._context.data_name
        try:
            about = {"weights": "last"}
            write_extrapolation(self._found, self._context.model_name, folder, step=summary["steps"], about=about)
        except OSError as error:
            log.warning("lengths     the losses by length cannot be written (%s)", error.strerror)
            return
        if self._context.verbose:
            log.info("            %s", missing_charts() or f"drawn in {shown_path(folder / PICTURE)}")

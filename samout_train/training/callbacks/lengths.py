"""Measure what a model does past the length that it was trained at, at the end of a run on text."""

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
    """Adds losses by length to the last report, all of it to `summary.json` as `lengths`, and draws it.

    Only where the validation split is one long text, and the model can go on from a state.

    Args:
        times: Lengths to read at, as multiples of the training length; none to leave it out.
        most_tokens: Of the validation text so many are read at each length, or as many as the longest needs.
    """

    @validated
    def __init__(self, *, times: list[Annotated[int, Positive]], most_tokens: Annotated[int, Positive]) -> None:
        self.times, self.most_tokens = times, most_tokens
        self._found: Extrapolation | None = None

    def on_start(self, context: RunContext) -> None:
        """Keep what is evaluated."""
        self._context = context

    def on_evaluate(self, step: int, *, is_last: bool, check_stop: Callable[[], None]) -> dict[str, float]:
        """Read, at the end."""
        context, rows = self._context, self._context.source.validation
        tokens = stream_of(rows)
        self._found = None  # of a checkpoint: the weights are other ones now
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
        """Return what was found, for `summary.json`."""
        if self._found is None:
            return {}
        return {"lengths": self._found.figures()}

    def state_dict(self) -> dict[str, Any]:
        """Return what a continued run needs: the reading of a run that was stopped behind it."""
        if self._found is None:
            return {"found": None}
        return {"found": vars(self._found)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what was read."""
        self._found = None
        if state["found"] is not None:
            self._found = Extrapolation(**state["found"])

    def on_end(self, summary: dict[str, Any]) -> None:
        """Report the verdict, the picture, and the losses by position as a chart of TensorBoard's."""
        if self._found is None or not self._found.loss_nats:
            return
        losses = ", ".join(f"{nats:.3f} at {length:,}" for length, nats in self._found.loss_nats.items())
        log.info("loss of the validation text in windows of so many tokens: %s", losses)
        for line in self._found.verdict():
            log.info("  %s", line)
        folder = self._context.run_dir / "evaluate" / self._context.data_name
        try:
            write_extrapolation(self._found, self._context.model_name, folder, step=summary["steps"])
        except OSError as error:
            log.warning("losses by length cannot be written (%s)", error.strerror)
            return
        log.info("  %s", missing_charts() or f"drawn in {shown_path(folder / PICTURE)}")
